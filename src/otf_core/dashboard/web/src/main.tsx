import "./token"; // first: the token leaves the address before anything else runs
import "./dial";
import "./style.css";
import { render } from "preact";
import { App } from "./app";
import { drawCharts, onWake } from "./charts";
import { bind, onKey } from "./keys";
import { beat, connect, follow } from "./live";
import { viewNow } from "./page";
import { sceneOf } from "./scene";
import { noteHere } from "./spot";
import { store } from "./store";
import { moveTimeline, toEvent } from "./timeline";
import { titleOf } from "./title";
import { shared } from "./view";
import { goThere } from "./where";

const root = document.getElementById("page");
if (root === null) throw new Error("index.html has no #page");

/** So long the page may stay empty: to draw that it connects takes longer than to be let in. */
const EMPTY_MS = 150;
let waited = false;

onWake(store.changed);
store.onFrame(() => {
  if (store.link.state === "connecting" && !waited) return;
  goThere();
  const view = viewNow();
  const scene = sceneOf(view);
  render(<App view={view} scene={scene} />, root);
  drawCharts(scene);
  moveTimeline(scene);
  follow();
});
bind("g", () => shared.setLayout(shared.layout === "grid" ? "stack" : "grid"));
bind("[", () => toEvent(-1));
bind("]", () => toEvent(1));
bind("n", () => noteHere(viewNow()));
addEventListener("keydown", onKey);
addEventListener("resize", store.changed);
setInterval(() => {
  beat();
  if (document.hidden) document.title = titleOf(viewNow()); // nothing is drawn that would say it
}, 1000);
setTimeout(() => {
  waited = true;
  store.changed();
}, EMPTY_MS);
connect();
