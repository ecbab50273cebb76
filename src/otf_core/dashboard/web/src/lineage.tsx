/** The drawer Lineage. */

import type { JSX } from "preact";
import type { View } from "./state";

export function Lineage({ view: _view }: { view: View }): JSX.Element {
  return <div class="dr-b"><p class="lead">The tree of runs is not shown yet.</p></div>;
}
