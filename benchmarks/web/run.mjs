// Time LiteRT files side by side in WebAssembly, and return their outputs.
//
//   node --experimental-wasm-relaxed-simd run.mjs < job.json > result.json
//
// The job: {modules: "…/node_modules", threads: 1, rounds, warmup,
// cases: [{name, files: {side: path}, inputs: [{path, shape}],
// outputs: {side: prefix}}]}. Inputs and outputs are raw float32. The sides
// of a case run in turn; per round and side there is the CPU time of the
// whole process and the time on the clock, in milliseconds.

import {readFileSync, writeFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {dirname, join} from 'node:path';
import {pathToFileURL} from 'node:url';
import vm from 'node:vm';

const job = JSON.parse(readFileSync(0, 'utf8'));
const core = join(job.modules, '@litertjs', 'core');

// LiteRT.js is made for browsers. It loads its module by a script element, or
// by `importScripts` in a worker; what comes here stands in for a worker.
globalThis.self = globalThis;
globalThis.importScripts = (path) => {
  const code = readFileSync(path, 'utf8');
  // In this context, where the script finds `require` as a module would.
  const wrap = vm.runInThisContext(
      `(function(require, module, exports, __filename, __dirname) {${code}
return ModuleFactory;})`,
      {filename: path});
  const require = createRequire(pathToFileURL(path));
  self.ModuleFactory = wrap(require, {exports: {}}, {}, path, dirname(path));
  self.Module = {
    wasmBinary: readFileSync(path.replace(/\.js$/, '.wasm')),
    print: () => {},
    printErr: (line) => process.stderr.write(`${line}\n`),
  };
};

const {loadLiteRt, loadAndCompile, Tensor} =
    await import(pathToFileURL(join(core, 'dist', 'index.js')).href);
await loadLiteRt(join(core, 'wasm') + '/');

const floats = (path) => {
  const bytes = readFileSync(path);
  return new Float32Array(
      bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
};

async function run(one, tensors) {
  const outputs = await one.run(tensors);
  return outputs;
}

async function measure(one) {
  const sides = {};
  const failed = {};
  for (const [name, path] of Object.entries(one.files)) {
    try {
      sides[name] = await loadAndCompile(
          new Uint8Array(readFileSync(path)), {accelerator: 'wasm'});
    } catch (error) {
      failed[name] = String(error.message ?? error).split('\n')[0];
    }
  }
  const tensors =
      one.inputs.map(({path, shape}) => new Tensor(floats(path), shape));
  const order = Object.keys(sides);
  for (const name of order) {
    const outputs = await run(sides[name], tensors);
    for (const [i, output] of outputs.entries()) {
      const values = output.toTypedArray();
      writeFileSync(`${one.outputs[name]}.${i}`, Buffer.from(
          values.buffer, values.byteOffset, values.byteLength));
      output.delete();
    }
  }
  const cpu = Object.fromEntries(order.map((name) => [name, []]));
  const wall = Object.fromEntries(order.map((name) => [name, []]));
  for (let round = -job.warmup; round < job.rounds; round++) {
    const turn = ((round % order.length) + order.length) % order.length;
    for (const name of [...order.slice(turn), ...order.slice(0, turn)]) {
      const repeats = one.repeats ?? 1;
      const began = performance.now();
      const used = process.cpuUsage();
      for (let i = 0; i < repeats; i++) {
        for (const output of await run(sides[name], tensors)) {
          output.delete();
        }
      }
      const spent = process.cpuUsage(used);
      if (round >= 0) {
        cpu[name].push((spent.user + spent.system) / 1e3 / repeats);
        wall[name].push((performance.now() - began) / repeats);
      }
    }
  }
  for (const side of Object.values(sides)) side.delete();
  for (const tensor of tensors) tensor.delete();
  return {name: one.name, cpu, wall, failed};
}

const found = [];
for (const one of job.cases) found.push(await measure(one));
process.stdout.write(JSON.stringify({node: process.version, cases: found}));
process.exit(0);
