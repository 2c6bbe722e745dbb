// A worker beside worker.js that draws bands of images, see bands.js.

import { drawBand } from "./bands.js";
import { openKernels } from "./kernels.js";

let kernels;
let shown; // controls of a moving volume's present frame

onmessage = async ({ data }) => {
  try {
    if (kernels) draw(data);
    else await open(data);
  } catch (error) {
    postMessage({ message: String(error?.message ?? error) });
  }
};

async function open({ compiled, volume, walk, motion, decoder }) {
  kernels = await openKernels(compiled, volume, walk, motion);
  kernels.setDecoder(decoder);
  postMessage({});
}

function draw({ camera, controls, background, band }) {
  if (kernels.motion && !shown?.every((value, k) => value === controls[k])) {
    kernels.set(controls);
    shown = controls;
  }
  const { pixels, ms } = drawBand(kernels, camera, background, band);
  const own = pixels.slice();
  postMessage({ pixels: own, ms }, [own.buffer]);
}
