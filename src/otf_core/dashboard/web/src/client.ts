/** What this page is: what it was built from, and what it calls itself to those who share the run. */

declare const __OTF_BUILD__: string | undefined;

/** As the dashboard's `welcome` has it in `build`; "" where nothing was built. */
export const build: string = typeof __OTF_BUILD__ === "string" ? __OTF_BUILD__ : "";

/** "Firefox on Linux", "Safari on a phone": enough to tell two pages of one person apart. */
export function clientName(agent: string = navigator.userAgent): string {
  const browser =
    /Firefox|FxiOS/.test(agent) ? "Firefox"
    : /Edg/.test(agent) ? "Edge"
    : /Chrome|CriOS/.test(agent) ? "Chrome"
    : /Safari/.test(agent) ? "Safari"
    : "a browser";
  const machine =
    /iPad/.test(agent) ? "an iPad"
    : /Mobile|iPhone|Android/.test(agent) ? "a phone"
    : /Windows/.test(agent) ? "Windows"
    : /Mac OS/.test(agent) ? "a Mac"
    : /Linux|X11/.test(agent) ? "Linux"
    : "a computer";
  return `${browser} on ${machine}`;
}
