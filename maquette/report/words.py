"""What the page says: plain words for stages, figures and additions, for people who never read a paper.

Names that are not listed are shown as they are, so that a new method has a readable page before it has words here.
"""

from __future__ import annotations

from collections.abc import Iterable

from maquette.run.progress import duration

METHODS = {
    "imagedream": "ImageDream",
    "usd": "USD",
    "dreambooth3d": "DreamBooth3D",
    "text": "Text to 3D",
    "views": "ImageDream's first stage",
}
"""Method -> its name in print."""

STAGES = {
    "views": (
        "Imagining four sides",
        "The prior painted the object from its front, left, back and right.",
    ),
    "views_1": (
        "Imagining four more sides",
        "The same again, turned by 45 degrees, so that the corners between the sides are seen too.",
    ),
    "warm_start": (
        "A first shape",
        "A cloud of colour and density was fitted until it looked like the imagined views.",
    ),
    "match": (
        "Looking for the picture among the views",
        "Where one of the imagined views is the picture itself, the viewpoint is known without a search.",
    ),
    "locate": (
        "Finding the viewpoint",
        "The shape was compared with the picture from many directions, to find where the picture was taken from.",
    ),
    "radiance_field": (
        "Refining in 3D",
        "The cloud was shown to the prior from ever new directions and nudged towards what the prior expects to see "
        "there (score distillation, the heart of the method).",
    ),
    "elevation": (
        "Finding the height",
        "The prior drew views around the picture, and the height was taken at which they agree best with each other.",
    ),
    "renderings": (
        "Photographing the cloud",
        "The finished cloud was rendered from all around.",
    ),
    "class_pictures": (
        "Pictures of its kind",
        "The 2D prior painted things of the same kind, so that it does not forget them while it learns this one.",
    ),
    "object": (
        "Learning the object",
        "The 2D prior learned the object from the picture and from the imagined views.",
    ),
    "detail": (
        "Learning the picture's own look",
        "A few more steps told the sharp picture apart from the blurred views that the prior had imagined.",
    ),
    "refined": (
        "Cleaning the renderings",
        "Each rendering was noised a little and painted clean by the prior that had learned the object.",
    ),
    "surface": (
        "Recovering the surface",
        "A sharp surface was fitted to the cleaned pictures and their outlines.",
    ),
    "geometry": (
        "Recovering the surface",
        "A sharp surface was fitted to these pictures and their outlines.",
    ),
    "sculpting": (
        "Sculpting the surface",
        "The prior looked at the directions that the surface faces, without any colour, and nudged its shape.",
    ),
    "texture": (
        "Painting the surface",
        "The shape was kept as it was, and its colours were nudged towards what the prior expects to see.",
    ),
    "painted": ("The final texture", "The new colours were painted into the texture."),
    "photos": (
        "Looking at the photos",
        "The subject was cut out of its photos, and the side that each shows was guessed.",
    ),
    "dreambooth": (
        "Learning the subject",
        "The prior was shown the photos until it knew the subject by a name of its own, [v].",
    ),
    "choice": (
        "Choosing how far to learn",
        "States of the learning were compared: how alike, and whether they still show the side they are asked for.",
    ),
    "subject": ("Keeping the subject", "What was learned serves further objects of the same subject."),
    "samples": ("Asking for every side", "Each model painted the subject from the sides that it was asked for."),
    "initial_views": (
        "Imagining four sides",
        "The half learned model painted the subject from its front, left, back and right.",
    ),
    "initial_match": (
        "Looking for the photo among the views",
        "Where one of the views is the photo itself, the photo takes its place.",
    ),
    "initial_start": ("A first shape", "A cloud of colour and density was fitted until it looked like these views."),
    "final_views": (
        "Imagining four sides again",
        "The model that knows all sides painted the subject from its front, left, back and right.",
    ),
    "final_match": (
        "Looking for the photo among the views",
        "Where one of the views is the photo itself, the photo takes its place.",
    ),
    "final_start": ("A second shape", "Another cloud was fitted until it looked like these views."),
    "initial_field": (
        "A first field",
        "A cloud of colour and density was nudged towards what the half learned prior expects to see from each side.",
    ),
    "pseudo_views": (
        "Painting over the renderings",
        "Views of the first cloud were noised in part and painted clean by the prior that knows the subject fully.",
    ),
    "multiview_model": (
        "Learning all sides",
        "The half learned prior went on with the photos and the painted views, each under the word of its side.",
    ),
    "final_field": (
        "The final field",
        "A second cloud was nudged by the prior that knows all sides, and resembles the painted views weakly.",
    ),
    "final_renderings": ("Photographing the final field", "The second cloud was rendered from all around."),
    "final_pseudo_views": (
        "Painting over it once more",
        "These views were noised a little and painted clean by the prior that knows all sides.",
    ),
    "refined_field": ("Sharper colours", "The second cloud was fitted to these pictures, and kept its outlines."),
    "latent_field": (
        "A field of latents",
        "A cloud of the prior's own numbers, not of colours, was nudged towards what the prior expects.",
    ),
    "decoded_views": ("Back to colours", "Views of these numbers were decoded into pictures."),
    "coloured_field": ("A coloured cloud", "The cloud took on the colours of the decoded pictures."),
    "mesh": (
        "Surface and texture",
        "The cloud's surface became triangles, was cleaned and unfolded, and its colours were painted into a texture.",
    ),
}
"""Stage -> (what it is in a few words, what it did in one sentence)."""

STAGE_STEPS = {
    "dreambooth": "personal.steps",
    "initial_views": "first_views.sampling.steps",
    "initial_start": "first_views.fit.steps",
    "final_views": "first_views.sampling.steps",
    "final_start": "first_views.fit.steps",
    "initial_field": "initial_fit.steps",
    "latent_field": "initial_fit.steps",
    "multiview_model": "multiview.personal.steps",
    "final_field": "fit.steps",
    "coloured_field": "fit.steps",
    "views": "sampling.steps",
    "views_1": "sampling.steps",
    "warm_start": "warm_start.fit.steps",
    "radiance_field": "fit.steps",
    "object": "refinement.specialize.first.steps",
    "detail": "refinement.specialize.second.steps",
    "surface": "recovery.fit.steps",
    "geometry": "geometry.recovery.fit.steps",
    "sculpting": "geometry.sculpting.fit.steps",
    "texture": "texture.fit.steps",
}
"""Stage -> the setting that says how many steps it has."""

TARGETS = {
    "pseudo_views": "the painted views",
    "final_pseudo_views": "the painted views",
    "decoded_views": "the decoded views",
    "views": "the imagined views",
    "prompt_view": "the picture",
    "photo": "the photo",
    "distillation": "the prior",
    "reference": "the picture, as the 2D prior sees it",
    "refined": "the cleaned pictures",
    "geometry": "the pictures of the cloud",
    "sculpting": "the prior",
    "texture": "the prior",
    "warm_start": "the imagined views",
    "initial_start": "the imagined views",
    "final_start": "the imagined views",
}
"""Objective, or the stage of a single one -> what the figures compare with."""

FIGURES = {
    "psnr": ("Likeness to {}", "dB, higher is better"),
    "loss": ("Mismatch with {}", "lower is better"),
    "rgb": ("Difference of colours from {}", "lower is better"),
    "colour": ("Difference inside the outline from {}", "lower is better"),
    "weight": ("Weight of {}", ""),
    "mask": ("Difference of outlines from {}", "lower is better"),
    "guidance": ("Mismatch with {}, unweighted", "lower is better"),
    "grad_norm": ("Strength of the correction by {}", ""),
    "opacity": ("Share of the picture that is covered", ""),
    "t": ("Noise level at which the prior is asked", ""),
    "samples_per_ray": ("Points looked at along a line of sight", ""),
    "gradient": ("Strength of the whole correction", ""),
    "orientation": ("Surfaces that face away", "lower is better"),
    "opaque": ("Fog: neither solid nor empty", "lower is better"),
    "sparsity": ("Amount of matter", ""),
    "total_variation": ("Roughness of the cloud", ""),
}
"""Last word of a metric's name -> (title, with a place for what it compares with; how to read it)."""

CUTOUTS = {
    "alpha": "The picture came with a transparent background, which was used as it is.",
    "plain": "The picture's background has one smooth colour; everything of that colour around the object was removed.",
    "photo": "The object was separated from a photographed background by its colours and its place in the picture.",
    "rembg": "The object was separated from its background by the rembg network.",
    "file": "The object was cut out with the mask that was given.",
}
"""Way of cutting out -> one sentence."""

NANO = (
    "nano is a small prior of toy-like objects: it shows the method at work and is no match for the published weights "
    "of its kind."
)

VIEW_ROWS = {
    "renderings": ("Cloud", "the same sides of the radiance field, before refinement"),
    "refined": ("Cleaned", "these renderings, cleaned by the 2D prior that learned the object"),
}
"""Stage whose first pictures show the sides of the imagined views -> (title, note) of their row."""

BARE = ("Unpainted", "the surface in the colours of the cloud, before it was painted")
"""Row of a mesh whose colours a later stage learned anew: title, note."""

CITE_US = "The maquette authors. maquette: from pictures and words to textured 3D objects. 2026. Apache-2.0."


def headlines(metrics: Iterable[str]) -> list[str]:
    """The metrics of a stage that say how it went: for each objective its likeness, or its loss if it has none.

    >>> headlines(["distillation.loss", "distillation.t", "views.loss", "views.psnr"])
    ['distillation.loss', 'views.psnr']
    """
    names = set(metrics)

    def beside(name: str, last: str) -> str:
        return ".".join([*name.split(".")[:-1], last])

    return sorted(
        name for name in names if name.endswith("psnr") or (name.endswith("loss") and beside(name, "psnr") not in names)
    )


def stage_words(name: str) -> tuple[str, str]:
    """Title and sentence for a stage; the name itself where there are no words."""
    return STAGES.get(name, (name.replace("_", " ").capitalize(), ""))


def figure_words(stage: str, metric: str) -> tuple[str, str]:
    """Title and reading hint for a metric of a stage, whose name may begin with an objective's.

    >>> figure_words("radiance_field", "views.psnr")
    ('Likeness to the imagined views', 'dB, higher is better')
    >>> figure_words("fit", "size")
    ('Size', '')
    """
    objective, _, last = metric.rpartition(".")
    title, hint = FIGURES.get(last, (last.replace("_", " ").capitalize(), ""))
    target = TARGETS.get(objective or stage, (objective or "the target").replace("_", " "))
    if objective and "{}" not in title:
        hint = f"for {target}" + (f"; {hint}" if hint else "")
    return title.format(target), hint


def percent(share: float) -> str:
    """A share for people.

    >>> percent(0.914), percent(0.0004)
    ('91\N{NO-BREAK SPACE}%', 'less than 0.1\N{NO-BREAK SPACE}%')
    """
    if 0 < share < 0.001:
        return "less than 0.1\N{NO-BREAK SPACE}%"
    return f"{100 * share:.{1 if share < 0.02 and share else 0}f}\N{NO-BREAK SPACE}%"


def time_words(seconds: float) -> str:
    """How long something took, for people."""
    return duration(seconds) if seconds >= 0.95 else "less than 1 s"


def direction_words(azimuth: float, elevation: float) -> str:
    """From where a camera looks, in words; degrees as in the house's conventions.

    >>> direction_words(-43.75, -4.4)
    '44\N{DEGREE SIGN} from the front towards its right side, 4\N{DEGREE SIGN} below eye level'
    >>> direction_words(4.0, 20.0)
    'straight from the front, 20\N{DEGREE SIGN} above eye level'
    """
    turned = (azimuth + 180) % 360 - 180
    side = "left" if turned > 0 else "right"
    if abs(turned) < 8:
        around = "straight from the front"
    elif abs(turned) > 172:
        around = "straight from behind"
    else:
        around = f"{abs(turned):.0f}\N{DEGREE SIGN} from the front towards its {side} side"
    if abs(elevation) < 2.5:
        return f"{around}, at eye level"
    return f"{around}, {abs(elevation):.0f}\N{DEGREE SIGN} {'above' if elevation > 0 else 'below'} eye level"
