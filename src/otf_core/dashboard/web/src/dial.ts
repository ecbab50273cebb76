/** The first connection, made while the rest of the page is still being read. */

export function dial(): WebSocket {
  const address = new URL("api/live", document.baseURI);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  address.search = "";
  address.hash = "";
  return new WebSocket(address.href);
}

let first: WebSocket | null = dial();

/** A socket that is being opened. */
export function socketToUse(): WebSocket {
  const socket = first ?? dial();
  first = null;
  return socket;
}
