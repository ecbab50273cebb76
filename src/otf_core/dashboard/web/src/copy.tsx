/** A button that copies a line, and says that it has. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { Icon } from "./icons";

/** Without a secure context there is no clipboard to write to: the line is selected to be copied by hand. */
async function copied(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

export function Copy({ text, label = "Copy", small = true }: { text: string; label?: string; small?: boolean }): JSX.Element {
  const [said, say] = useState<string | null>(null);
  return (
    <button
      type="button" class={`btn${small ? " sm" : ""} copy`} aria-label={label === "Copy" ? `Copy ${text.split("\n")[0] ?? ""}` : undefined}
      onClick={() => void copied(text).then((done) => {
        say(done ? "Copied" : "Select it to copy");
        setTimeout(() => say(null), 2_000);
      })}
    >
      <Icon name="copy" />
      <span aria-live="polite">{said ?? label}</span>
    </button>
  );
}

/** A command for a shell, to be copied. */
export function Line({ text, hint }: { text: string; hint?: string }): JSX.Element {
  return (
    <div class="line">
      <code class="clip" title={text}>{text}</code>
      <Copy text={text} />
      {hint !== undefined && <span class="hint">{hint}</span>}
    </div>
  );
}
