// Numbers of the service from its own /metrics: what happened between two readings of it.

/** The samples of Prometheus's text, each { name, labels, value }. */
export function samplesOf(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const match = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value;
    found.push({ name: match[1], labels, value: Number(match[3]) });
  }
  return found;
}

/** The sum of a metric's samples whose labels are these. */
export function sumOf(samples, name, labels = {}) {
  const fits = (sample) => sample.name === name && Object.entries(labels).every(([key, value]) => sample.labels[key] === value);
  return samples.filter(fits).reduce((sum, sample) => sum + sample.value, 0);
}

/** Counts of a histogram's buckets, each with its upper bound: [bound, requests up to it]. */
function bucketsOf(samples, name) {
  const counts = new Map();
  for (const { name: own, labels, value } of samples) {
    if (own !== `${name}_bucket`) continue;
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return [...counts].sort(([a], [b]) => a - b);
}

/** A quantile of what two readings differ by, as Prometheus estimates it; null if by nothing. */
export function quantileBetween(before, after, name, quantile) {
  const old = new Map(bucketsOf(before, name));
  const buckets = bucketsOf(after, name).map(([bound, count]) => [bound, count - (old.get(bound) ?? 0)]);
  const all = buckets.at(-1)?.[1] ?? 0;
  if (all <= 0) return null;
  let [low, below] = [0, 0];
  for (const [bound, count] of buckets) {
    if (count >= quantile * all) {
      if (bound === Infinity) return low;
      return low + ((bound - low) * (quantile * all - below)) / (count - below || 1);
    }
    [low, below] = [bound, count];
  }
  return low;
}

/** Hit rates with their standard errors, for each bundle, variant and event type that has hits. */
export function hitRatesOf(samples) {
  const hits = samples.filter(({ name, value }) => name === "unmask_hit_recommendations_total" && value > 0);
  return hits.map(({ labels: { bundle, variant, event_type: eventType }, value }) => {
    const answers = sumOf(samples, "unmask_recommendations_total", { bundle, variant });
    const rate = answers ? value / answers : 0;
    return { bundle, variant, eventType, answers, rate, error: Math.sqrt((rate * (1 - rate)) / Math.max(1, answers)) };
  });
}
