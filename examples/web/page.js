// Two files of one network classify images as they arrive.
//
// Sizes and accuracies come from site.json, which the example writes. With
// ?images=N the page stops after N images and posts what it saw to /result.

import {loadAndCompile, loadLiteRt, Tensor} from '@litertjs/core';

const SIDES = ['dense', 'sparse'];
const WARMUP = 3;
const PAUSE = 150;  // milliseconds between images, while somebody looks

const status = document.getElementById('status');
const limit = Number(new URLSearchParams(location.search).get('images') ?? 0);

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
};

function draw(pixels, [height, width, channels]) {
  const canvas = document.getElementById('image');
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext('2d');
  const image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) {
      image.data[4 * i + c] = 255 * pixels[channels * i + (c % channels)];
    }
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

function show(side, site, seen) {
  const row = document.getElementById(side);
  const milliseconds = seen[side].times.length ? median(seen[side].times) : 0;
  const slowest = Math.max(
      ...SIDES.map((s) => (seen[s].times.length ? median(seen[s].times) : 0)));
  row.innerHTML = [
    side,
    seen[side].last ?? '',
    milliseconds.toFixed(2),
    (site[side].bytes / 1000).toFixed(1),
    `${seen[side].right} of ${seen[side].count}`,
    `${(100 * site[side].accuracy).toFixed(1)} %`,
    `<div class="bar" style="width:${
        slowest ? 8 * milliseconds / slowest : 0}rem"></div>`,
  ].map((cell) => `<td>${cell}</td>`).join('');
}

async function classify(model, pixels, shape) {
  const input = new Tensor(pixels, [1, ...shape]);
  const began = performance.now();
  const [output] = await model.run([input]);
  const scores = output.toTypedArray();
  const spent = performance.now() - began;
  const best = scores.indexOf(Math.max(...scores));
  const copy = Array.from(scores);
  output.delete();
  input.delete();
  return {best, spent, scores: copy};
}

async function main() {
  const site = await (await fetch('site.json')).json();
  const {shape, labels} = site;
  const pixels =
      new Float32Array(await (await fetch('images.bin')).arrayBuffer());
  const size = shape.reduce((a, b) => a * b);
  await loadLiteRt('/node_modules/@litertjs/core/wasm/');
  const models = {};
  const seen = {};
  for (const side of SIDES) {
    status.textContent = `Loading the ${side} file…`;
    models[side] =
        await loadAndCompile(`${side}.tflite`, {accelerator: 'wasm'});
    seen[side] = {times: [], right: 0, count: 0, scores: []};
  }
  status.textContent = 'Images arrive.';
  for (let i = 0; !limit || i < limit + WARMUP; i++) {
    const place = i % labels.length;
    const image = pixels.slice(place * size, (place + 1) * size);
    draw(image, shape);
    // The one that runs first changes from image to image.
    const order = i % 2 ? [...SIDES].reverse() : SIDES;
    for (const side of order) {
      const {best, spent, scores} = await classify(models[side], image, shape);
      const one = seen[side];
      one.last = best;
      one.count += 1;
      one.right += Number(best === labels[place]);
      if (i >= WARMUP) one.times.push(spent);
      if (limit) one.scores.push(scores);
    }
    for (const side of SIDES) show(side, site, seen);
    if (i >= WARMUP) {
      const ratio = median(seen.dense.times) / median(seen.sparse.times);
      document.getElementById('ratio').textContent =
          `The sparse file takes ${ratio.toFixed(2)} times less time and ` +
          `${(site.dense.bytes / site.sparse.bytes).toFixed(1)} times fewer ` +
          'bytes.';
    }
    if (!limit) await new Promise((done) => setTimeout(done, PAUSE));
  }
  status.textContent = 'Done.';
  await fetch('/result', {
    method: 'POST',
    body: JSON.stringify({seen, isolated: globalThis.crossOriginIsolated}),
  });
}

main().catch(async (error) => {
  status.textContent = `This does not work here: ${error.message ?? error}`;
  await fetch('/result', {
    method: 'POST',
    body: JSON.stringify({error: String(error.stack ?? error)}),
  });
});
