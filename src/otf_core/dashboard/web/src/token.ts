/** The access token: taken from the address, hidden from it, kept for this tab.
 *
 * main.tsx imports this module before all others, so the token has left the
 * address bar and the history before any other code of the page runs.
 */

const KEY = "otf.token";

function take(): string {
  const parts = location.hash.replace(/^#/, "").split("&").filter(Boolean);
  const found = parts.find((part) => part.startsWith("token="));
  if (found !== undefined) {
    const rest = parts.filter((part) => part !== found).join("&");
    history.replaceState(
      history.state,
      "",
      location.pathname + location.search + (rest ? "#" + rest : ""),
    );
  }
  try {
    if (found !== undefined) sessionStorage.setItem(KEY, decodeURIComponent(found.slice(6)));
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    // Storage may be switched off; the token then lives as long as the page.
    return found === undefined ? "" : decodeURIComponent(found.slice(6));
  }
}

export const token: string = take();
