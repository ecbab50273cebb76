import { expect, test } from "vitest";
import { layOut, walk, type Item } from "../src/graph";

const size = { width: 100, height: 50, gapX: 10, gapY: 40 };

function item(id: string, ...parents: string[]): Item {
  return { id, parents: parents.map((parent) => ({ id: parent, label: "1" })) };
}

const family = [item("a"), item("b", "a"), item("c", "a"), item("d", "a"), item("e", "b", "c"), item("f", "e", "a")];

function overlaps(nodes: { x: number; y: number }[]): number {
  return nodes.filter((one, i) => nodes.some((other, j) => j > i && one.y === other.y && Math.abs(one.x - other.x) < size.width)).length;
}

test("every run lies below all of its parents, and no two on each other", () => {
  const graph = layOut(family, size);
  const at = new Map(graph.nodes.map((node) => [node.id, node]));
  for (const { from, to } of graph.edges) expect(at.get(from)?.y).toBeLessThan(at.get(to)?.y ?? 0);
  expect(graph.nodes.map((node) => node.layer)).toEqual([0, 1, 1, 1, 2, 3]);
  expect(overlaps(graph.nodes)).toBe(0);
  expect(graph.edges).toHaveLength(7);
  for (const node of graph.nodes) {
    expect(node.x).toBeGreaterThanOrEqual(0);
    expect(node.x + size.width).toBeLessThanOrEqual(graph.width + 1e-9);
  }
  expect(graph.height).toBe(4 * 50 + 3 * 40);
});

test("a line over several rows goes past the runs that stand between", () => {
  const graph = layOut(family, size);
  const long = graph.edges.find((edge) => edge.from === "a" && edge.to === "f");
  expect(long?.points).toHaveLength(6);
  for (const [x, y] of long?.points.slice(1, -1) ?? []) {
    for (const node of graph.nodes) {
      const beside = x <= node.x || x >= node.x + size.width;
      expect(y < node.y || y > node.y + size.height || beside).toBe(true);
    }
  }
});

test("the lines into a merge do not cross", () => {
  const graph = layOut([item("a"), item("b", "a"), item("c", "a"), item("m", "c", "b")], size);
  const into = graph.edges.filter((edge) => edge.to === "m").map((edge) => ({ from: edge.points[0]?.[0] ?? 0, to: edge.points.at(-1)?.[0] ?? 0 }));
  expect(Math.sign((into[0]?.from ?? 0) - (into[1]?.from ?? 0))).toBe(Math.sign((into[0]?.to ?? 0) - (into[1]?.to ?? 0)));
});

test("arrow keys walk along the lines and within a row", () => {
  const graph = layOut(family, size);
  const row = graph.nodes.filter((node) => node.layer === 1).sort((a, b) => a.x - b.x).map((node) => node.id);
  expect(walk(graph, row[0] as string, "ArrowRight")).toBe(row[1]);
  expect(walk(graph, row[1] as string, "ArrowLeft")).toBe(row[0]);
  expect(walk(graph, row[0] as string, "ArrowLeft")).toBeNull();
  expect(walk(graph, "e", "ArrowUp")).toMatch(/^[bc]$/);
  expect(walk(graph, "b", "ArrowUp")).toBe("a");
  expect(walk(graph, "b", "ArrowDown")).toBe("e");
  expect(walk(graph, "f", "Home")).toBe("a");
  expect(walk(graph, "a", "End")).toBe("f");
  expect(walk(graph, "a", "x")).toBeNull();
});

test("forty forks of one run are a row, and a chain of forty is a column", () => {
  const names = Array.from({ length: 40 }, (_, i) => `r${i}`);
  const wide = layOut([item("a"), ...names.map((name) => item(name, "a"))], size);
  expect(overlaps(wide.nodes)).toBe(0);
  expect(wide.width).toBe(40 * 100 + 39 * 10);
  const deep = layOut(names.map((name, i) => (i === 0 ? item(name) : item(name, `r${i - 1}`))), size, 416);
  expect(new Set(deep.nodes.map((node) => node.x))).toEqual(new Set([158]));
});

test("a run that names itself, an unknown parent or a circle is shown all the same", () => {
  const graph = layOut([item("a", "a"), item("b", "gone"), item("c", "d"), item("d", "c")], size);
  expect(graph.nodes).toHaveLength(4);
  expect(layOut([], size, 416)).toMatchObject({ nodes: [], edges: [], width: 416 });
});
