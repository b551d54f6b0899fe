"""retrieval_inception: R-precision in four variants, CLIP scores, Inception Score and its quality-only form."""

from __future__ import annotations

from maquette.evaluation import quality
from tests.parity.golden import EXACT, Checks, Golden, Kind, has
from tests.parity.metrics.numbers import FORMULA, expected, facts, tell


def expects(golden: Golden) -> Checks:
    values = facts(golden, instead="retrieval_inception")
    return expected(golden, values, lambda name: False, arrays=lambda name: False)


def run(golden: Golden, checks: Checks) -> None:
    """Object n owns caption n unless the file gives another order of the captions."""
    values = facts(golden, instead="retrieval_inception")
    image, reference = golden.tensors["image_embeddings"], golden.tensors["reference_image_embeddings"]
    text, logits = golden.tensors["text_embeddings"], golden.tensors["class_logits"]
    own = values.get("true_text_index_of_object", list(range(image.shape[1])))
    text = text[own + [index for index in range(len(text)) if index not in own]]
    hits = quality.view_hits(image, text).double()
    likeness = quality.image_score(image, reference)
    scores, logs = quality.quality_score(logits), quality.log_quality(logits)
    inception = quality.inception_score(logits)[0]
    sizes = {"n_classes": logits.shape[1], "n_objects": image.shape[1], "n_texts": len(text), "n_views": len(image)}
    for name, size in sizes.items():
        tell(checks, name, size, EXACT)
    tell(checks, "true_text_index_of_object", own, EXACT)
    figures = {
        "clip_text_score_mean_x100": quality.text_score(image, text).mean(),
        "clip_text_score_clamped_w2p5": quality.clip_score(image, text).mean(),
        "clip_image_score_mean_x100": likeness.mean(),
        "clip_image_score_std_over_objects_x100": quality.Spread.of(likeness.mean(0)).std,
        "r_precision_each_view": hits.mean(1),
        "r_precision_per_view_average": hits.mean(),
        "r_precision_mean_embedding": quality.mean_embedding_hits(image, text).double().mean(),
        "r_precision_mean_similarity": quality.mean_similarity_hits(image, text).double().mean(),
        "r_precision_without_extra_distractors_per_view": quality.view_hits(image, text[: len(own)]).double().mean(),
        "inception_score_one_split": inception,
        "inception_log": inception.log(),
        "qis_per_image": scores,
        "qis_mean_of_exp": quality.Spread.of(scores).mean,
        "qis_std_of_exp": quality.Spread.of(scores).std,
        "qis_log_mean": logs.mean(),
        "qis_exp_of_mean": logs.mean().exp(),
    }
    for name, value in figures.items():
        tell(checks, name, value, FORMULA)


KIND = Kind("retrieval_inception", has("text_embeddings", "class_logits"), run, expects)
