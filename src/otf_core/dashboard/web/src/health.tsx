/** The drawer Health. */

import type { JSX } from "preact";
import type { View } from "./state";

export function Health({ view: _view }: { view: View }): JSX.Element {
  return <div class="dr-b"><p class="lead">Checks are not shown yet.</p></div>;
}
