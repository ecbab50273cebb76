/** The drawer Samples. */

import type { JSX } from "preact";
import type { View } from "./state";

export function Samples({ view: _view }: { view: View }): JSX.Element {
  return <div class="dr-b"><p class="lead">Losses of single samples are not shown yet.</p></div>;
}
