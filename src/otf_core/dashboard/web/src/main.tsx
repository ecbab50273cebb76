import "./token"; // first: the token leaves the address before anything else runs
import "./style.css";
import { render } from "preact";
import { App, sceneNow } from "./app";
import { drawCharts, onWake } from "./charts";
import { onKey } from "./keys";
import { beat, connect, follow } from "./live";
import { store } from "./store";
import { moveTimeline } from "./timeline";

const root = document.getElementById("page");
if (root === null) throw new Error("index.html has no #page");

onWake(store.changed);
store.onFrame(() => {
  render(<App />, root);
  drawCharts(sceneNow());
  moveTimeline();
  follow();
});
addEventListener("keydown", onKey);
addEventListener("resize", store.changed);
setInterval(beat, 1000);
store.changed();
connect();
