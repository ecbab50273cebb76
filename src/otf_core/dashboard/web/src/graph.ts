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
  x1: number;
  y1: number;
  x2: number;
  y2: number;
}

export interface Graph {
  nodes: Node[];
  edges: Edge[];
  width: number;
  height: number;
}

/** Each run below all of its parents; a row lies as near below them as its neighbours let it. */
export function layOut(items: Item[], size: Size, least = 0): Graph {
  const known = new Map(items.map((item) => [item.id, item]));
  const layers = new Map<string, number>();
  const layerOf = (id: string, above: Set<string>): number => {
    const found = layers.get(id);
    if (found !== undefined) return found;
    above.add(id);
    const parents = (known.get(id)?.parents ?? []).filter((one) => known.has(one.id) && !above.has(one.id));
    const layer = parents.reduce((deepest, one) => Math.max(deepest, layerOf(one.id, above) + 1), 0);
    above.delete(id);
    layers.set(id, layer);
    return layer;
  };
  for (const item of items) layerOf(item.id, new Set());

  const pitch = size.width + size.gapX;
  const centre = new Map<string, number>();
  const depth = Math.max(0, ...layers.values());
  for (let layer = 0; layer <= depth; layer += 1) {
    const row = items.filter((item) => layers.get(item.id) === layer);
    const wanted = (item: Item): number => {
      const above = item.parents.map((one) => centre.get(one.id)).filter((at) => at !== undefined);
      return above.length === 0 ? 0 : above.reduce((sum, at) => sum + at, 0) / above.length;
    };
    const placed = row.map((item) => ({ id: item.id, want: wanted(item), at: 0 })).sort((a, b) => a.want - b.want);
    let edge = -Infinity;
    for (const one of placed) {
      one.at = Math.max(one.want, edge);
      edge = one.at + pitch;
    }
    // They were pushed to the right; the row as a whole goes back below where it belongs.
    const shift = placed.reduce((sum, one) => sum + one.at - one.want, 0) / Math.max(1, placed.length);
    for (const one of placed) centre.set(one.id, one.at - shift);
  }
  const centres = [...centre.values()];
  const left = Math.min(...centres, 0);
  const span = (centres.length === 0 ? 0 : Math.max(...centres) - Math.min(...centres)) + size.width;
  const width = Math.max(span, least);
  const origin = (centres.length === 0 ? left : Math.min(...centres)) - size.width / 2 - (width - span) / 2;
  const nodes = items.map((item) => {
    const layer = layers.get(item.id) ?? 0;
    return { id: item.id, layer, x: (centre.get(item.id) ?? 0) - size.width / 2 - origin, y: layer * (size.height + size.gapY) };
  });
  const at = new Map(nodes.map((node) => [node.id, node]));
  const edges = items.flatMap((item) => item.parents.flatMap((one, i): Edge[] => {
    const [from, to] = [at.get(one.id), at.get(item.id)];
    if (from === undefined || to === undefined || from.layer >= to.layer) return [];
    // Two parents come in beside each other, and so do two checkpoints of one run.
    const aside = item.parents.length < 2 ? 0 : (i / (item.parents.length - 1) - 0.5) * size.width * 0.5;
    const order = Math.sign(to.x - from.x);
    return [{
      from: from.id, to: to.id, label: one.label,
      x1: from.x + size.width / 2 + order * size.width * 0.12, y1: from.y + size.height,
      x2: to.x + size.width / 2 + aside, y2: to.y,
    }];
  }));
  return { nodes, edges, width, height: (depth + 1) * (size.height + size.gapY) - size.gapY };
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
