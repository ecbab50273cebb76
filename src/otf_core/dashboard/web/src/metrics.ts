/** The metrics that the page knows by name: title, unit, how each is drawn. */

import { count, sig } from "./format";

export interface Metric {
  key: string;
  title: string;
  unit: string;
  /** Noisy from step to step, so the line is smoothed and the raw values are a band behind it. */
  noisy: boolean;
  /** May take the logarithmic axis. */
  log: boolean;
  /** Changes only now and then: drawn as points joined by a line. */
  sparse: boolean;
  /** Begins at zero. */
  zero: boolean;
  /** From the wire's unit to the shown one. */
  factor: number;
  show(value: number): string;
}

const plain = { unit: "", noisy: false, log: false, sparse: false, zero: false, factor: 1, show: sig };
const percent = (value: number): string => (value < 9.95 && value !== 0 ? value.toFixed(1) : value.toFixed(0));

export const KNOWN: readonly Metric[] = [
  { ...plain, key: "loss", title: "Train loss", noisy: true, log: true },
  { ...plain, key: "val_loss", title: "Validation loss", log: true, sparse: true },
  { ...plain, key: "accuracy", title: "Accuracy", noisy: true },
  { ...plain, key: "lr", title: "Learning rate", zero: true },
  { ...plain, key: "grad_norm", title: "Gradient norm", noisy: true, log: true },
  { ...plain, key: "weight_norm", title: "Weight norm" },
  { ...plain, key: "activation_zero_frac", title: "Activations at zero", noisy: true },
  { ...plain, key: "throughput", title: "Throughput", unit: "samples/s", noisy: true, zero: true, show: throughput },
  { ...plain, key: "batches_per_s", title: "Batches", unit: "/s", noisy: true, zero: true },
  { ...plain, key: "data_wait_frac", title: "Data wait", unit: "of step time", noisy: true, zero: true },
  { ...plain, key: "mem_vram", title: "GPU memory", unit: "GiB", zero: true, factor: 1 / 1024, show: (mib) => memory(mib / 1024) },
  { ...plain, key: "gpu_util", title: "GPU utilisation", unit: "%", zero: true, show: percent },
  { ...plain, key: "ram_mb", title: "RAM", unit: "GB", zero: true, factor: 1 / 1000, show: (mb) => memory(mb / 1000) },
];

function memory(value: number): string {
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

function throughput(value: number): string {
  return value >= 100 ? count(value) : sig(value);
}

/** Logged under one of these, a value is on a chart of its own already. */
const SAME = /^(train|training|val|valid|validation)?[_/ ]?(loss|acc|accuracy|lr)([_/](step|epoch))?$|^(epoch|step|global_step)$/i;

const known = new Map(KNOWN.map((metric) => [metric.key, metric]));

export function metricOf(key: string): Metric {
  const found = known.get(key);
  if (found !== undefined) return found;
  const name = key.replace(/^metrics\./, "");
  if (key.startsWith("lrs.")) {
    return { ...plain, key, title: `Learning rate, group ${key.slice(4)}`, zero: true };
  }
  const evaluated = /^(val|valid|validation|test)[_/]/i.test(name);
  return { ...plain, key, title: name, noisy: !evaluated, sparse: evaluated, log: /loss/i.test(name) };
}

/** Shown unless the user says otherwise. */
export function shownAtFirst(key: string): boolean {
  return !(key.startsWith("metrics.") && SAME.test(key.slice("metrics.".length)));
}
