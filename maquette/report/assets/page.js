"use strict";
(function () {
  const viewer = document.querySelector("model-viewer");
  const store = document.getElementById("asset");
  if (!viewer || !store) return;

  // The model lies in this page as base64; the viewer and the download link get it as a file in memory.
  const text = atob(store.textContent.trim());
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  const address = URL.createObjectURL(new Blob([bytes], { type: "model/gltf-binary" }));
  const download = document.getElementById("download");
  if (download) download.href = address;

  const notice = document.getElementById("notice");
  const tools = document.getElementById("tools");
  function apologise() {
    notice.hidden = false;
    tools.hidden = true;
  }
  viewer.addEventListener("error", apologise);
  const probe = document.createElement("canvas");
  if (!customElements.get("model-viewer") || !(probe.getContext("webgl2") || probe.getContext("webgl"))) {
    apologise();
    return;
  }

  // A wheel over the object scrolls the page until somebody has touched the object.
  viewer.disableZoom = true;
  viewer.addEventListener("pointerdown", () => { viewer.disableZoom = false; });
  viewer.addEventListener("pointerleave", () => { viewer.disableZoom = true; });

  for (const button of tools.querySelectorAll("[data-orbit]")) {
    button.addEventListener("click", () => {
      viewer.cameraTarget = "auto auto auto";
      viewer.fieldOfView = "auto";
      viewer.cameraOrbit = button.dataset.orbit;
    });
  }

  const bare = document.getElementById("bare");
  viewer.addEventListener("load", () => {
    tools.hidden = false;
    const skins = viewer.model.materials.map((material) => material.pbrMetallicRoughness);
    const kept = skins.map((skin) => ({ texture: skin.baseColorTexture.texture, factor: skin.baseColorFactor.slice() }));
    if (!kept.some((skin) => skin.texture)) {
      bare.hidden = true;  // colours at the corners cannot be taken off
      return;
    }
    bare.addEventListener("click", () => {
      const off = bare.getAttribute("aria-pressed") !== "true";
      bare.setAttribute("aria-pressed", String(off));
      skins.forEach((skin, i) => {
        skin.baseColorTexture.setTexture(off ? null : kept[i].texture);
        skin.setBaseColorFactor(off ? [0.62, 0.6, 0.57, 1] : kept[i].factor);
      });
    });
  });
  viewer.src = address;
})();
