// A long-lived Node.js process that does a claim's work when told to.
//
//     node peer.mjs WORK VARIANT INPUT [serve]
//
// VARIANT is `plain` or `builtin`. Lines in and out are those of guests/claim.h.
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';

const [name, variant, path, mode] = process.argv.slice(2);
const work = (await import(`./${name}.mjs`))[variant];
const file = readFileSync(path);
const data = new Uint8Array(file.buffer, file.byteOffset, file.length);

const answer = () => Buffer.from(work(data)).toString('hex') + '\n';

let kept; // the last result, so that no call can be left out
function timed(times) {
  const start = process.hrtime.bigint();
  for (let i = 0; i < times; i++) kept = work(data);
  return process.hrtime.bigint() - start;
}

if (mode) {
  for await (const line of createInterface({ input: process.stdin })) {
    const [command, times] = line.split(' ');
    process.stdout.write(command === 'run' ? `${timed(Number(times))}\n` : answer());
  }
} else {
  process.stdout.write(answer());
}
