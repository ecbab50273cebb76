/** Where the runs of a family stand in a top-down graph, and how arrow keys walk it. Pure functions. */

export interface Item {
  id: string;
  parents: { id: string; label: string }[];
}

export interface Size {
  width: number;
  height: number;
  gapX: number;
  gapY: number;
}

export interface Node {
  id: string;
  x: number;
  y: number;
  layer: number;
}

export interface Edge {
  from: string;
  to: string;
  label: string;
  /** From its parent to it; where rows lie between, past what stands there. */
  points: [x: number, y: number][];
  /** Where its label stands. */
  at: [x: number, y: number];
}

export interface Graph {
  nodes: Node[];
  edges: Edge[];
  width: number;
  height: number;
}

/** What takes room in a row: a run, or a line that passes by. */
interface Slot {
  key: string;
  width: number;
  above: string[];
  at: number;
}

const PASSING = 8;

/** Each run below all of its parents; a row lies as near below them as its neighbours let it. */
export function layOut(items: Item[], size: Size, least = 0): Graph {
  const layers = layersOf(items);
  const depth = Math.max(0, ...layers.values());
  const rows: Slot[][] = Array.from({ length: depth + 1 }, () => []);
  const passing = new Map<string, string[]>();
  for (const item of items) {
    const layer = layers.get(item.id) as number;
    const above = item.parents.flatMap((parent, i) => {
      const from = layers.get(parent.id);
      if (from === undefined || from >= layer) return [];
      let last = parent.id;
      const by: string[] = [];
      for (let between = from + 1; between < layer; between += 1) {
        const key = `${item.id}\n${i}\n${between}`;
        rows[between]?.push({ key, width: PASSING, above: [last], at: 0 });
        by.push(key);
        last = key;
      }
      passing.set(`${item.id}\n${i}`, by);
      return [last];
    });
    rows[layer]?.push({ key: item.id, width: size.width, above, at: 0 });
  }
  const centre = new Map<string, number>();
  for (const row of rows) place(row, centre, size.gapX);

  const lefts = rows.flat().map((slot) => slot.at - slot.width / 2);
  const rights = rows.flat().map((slot) => slot.at + slot.width / 2);
  const span = items.length === 0 ? 0 : Math.max(...rights) - Math.min(...lefts);
  const width = Math.max(span, least);
  const origin = (items.length === 0 ? 0 : Math.min(...lefts)) - (width - span) / 2;
  const pitch = size.height + size.gapY;
  const x = (key: string): number => (centre.get(key) ?? 0) - origin;
  const nodes = items.map((item) => {
    const layer = layers.get(item.id) as number;
    return { id: item.id, layer, x: x(item.id) - size.width / 2, y: layer * pitch };
  });
  const edges = items.flatMap((item) => item.parents.flatMap((parent, i): Edge[] => {
    const by = passing.get(`${item.id}\n${i}`);
    if (by === undefined) return [];
    const [from, to] = [layers.get(parent.id) as number, layers.get(item.id) as number];
    // Two parents come in beside each other, without crossing, and so do two checkpoints of one run.
    const comes = (other: { id: string }, n: number): number => x(passing.get(`${item.id}\n${n}`)?.at(-1) ?? other.id);
    const rank = item.parents.filter((other, n) => comes(other, n) < comes(parent, i) || (comes(other, n) === comes(parent, i) && n < i)).length;
    const aside = item.parents.length < 2 ? 0 : (rank / (item.parents.length - 1) - 0.5) * size.width * 0.6;
    const [start, end] = [x(parent.id), x(item.id) + aside];
    const leaves = start + Math.sign((by[0] === undefined ? end : x(by[0])) - start) * size.width * 0.12;
    const points: [number, number][] = [
      [leaves, from * pitch + size.height],
      ...by.flatMap((key, n): [number, number][] => {
        const top = (from + 1 + n) * pitch;
        return [[x(key), top], [x(key), top + size.height]];
      }),
      [end, to * pitch],
    ];
    const before = points.at(-2) as [number, number];
    return [{ from: parent.id, to: item.id, label: parent.label, points, at: [(before[0] + end) / 2, to * pitch - size.gapY / 2] }];
  }));
  return { nodes, edges, width, height: (depth + 1) * pitch - size.gapY };
}

/** The longest way from a run that has no parent here; what is its own ancestor has none. */
function layersOf(items: Item[]): Map<string, number> {
  const known = new Map(items.map((item) => [item.id, item]));
  const layers = new Map<string, number>();
  const layerOf = (id: string, below: Set<string>): number => {
    const found = layers.get(id);
    if (found !== undefined) return found;
    below.add(id);
    const parents = (known.get(id)?.parents ?? []).filter((one) => known.has(one.id) && !below.has(one.id));
    const layer = parents.reduce((deepest, one) => Math.max(deepest, layerOf(one.id, below) + 1), 0);
    below.delete(id);
    layers.set(id, layer);
    return layer;
  };
  for (const item of items) layerOf(item.id, new Set());
  return layers;
}

function place(row: Slot[], centre: Map<string, number>, gap: number): void {
  const wanted = (slot: Slot): number => slot.above.reduce((sum, key) => sum + (centre.get(key) ?? 0), 0) / Math.max(1, slot.above.length);
  const order = row.map((slot) => ({ slot, want: wanted(slot) })).sort((a, b) => a.want - b.want);
  let edge = -Infinity;
  for (const { slot, want } of order) {
    slot.at = Math.max(want, edge + slot.width / 2);
    edge = slot.at + slot.width / 2 + gap;
  }
  // They were pushed to the right; the row as a whole goes back below where it belongs.
  const shift = order.reduce((sum, { slot, want }) => sum + slot.at - want, 0) / Math.max(1, order.length);
  for (const { slot } of order) {
    slot.at -= shift;
    centre.set(slot.key, slot.at);
  }
}

/** Where a key leads from a run: up and down along the lines, aside within its row. */
export function walk(graph: Graph, id: string, key: string): string | null {
  const here = graph.nodes.find((node) => node.id === id);
  if (here === undefined) return graph.nodes[0]?.id ?? null;
  const nearest = (ids: string[]): string | null => {
    const found = graph.nodes.filter((node) => ids.includes(node.id));
    return found.sort((a, b) => Math.abs(a.x - here.x) - Math.abs(b.x - here.x))[0]?.id ?? null;
  };
  const row = graph.nodes.filter((node) => node.layer === here.layer).sort((a, b) => a.x - b.x);
  const place = row.findIndex((node) => node.id === id);
  switch (key) {
    case "ArrowUp":
      return nearest(graph.edges.filter((edge) => edge.to === id).map((edge) => edge.from));
    case "ArrowDown":
      return nearest(graph.edges.filter((edge) => edge.from === id).map((edge) => edge.to));
    case "ArrowLeft":
      return row[place - 1]?.id ?? null;
    case "ArrowRight":
      return row[place + 1]?.id ?? null;
    case "Home":
      return graph.nodes[0]?.id ?? null;
    case "End":
      return graph.nodes.at(-1)?.id ?? null;
    default:
      return null;
  }
}
