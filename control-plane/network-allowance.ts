/** `host`, `*.domain` or `*`, each with an optional port: what sandboxed code may reach. */
type Destination = { readonly host: string; readonly port: string | undefined };

const destinationPattern = /^(\*|(?:\*\.)?[a-z0-9](?:[a-z0-9_.-]*[a-z0-9])?)(?::(\d{1,5}))?$/;

function parseDestination(text: string): Destination | undefined {
  const [, host, port] = destinationPattern.exec(text.toLowerCase()) ?? [];
  return host === undefined || host.includes("..") ? undefined : { host, port };
}

/** Whether everything that `wish` reaches lies within `allowance`. An allowance without a port covers every port. */
export function coversHost(allowance: string, wish: string): boolean {
  if (allowance === wish) return true;
  const outer = parseDestination(allowance);
  const inner = parseDestination(wish);
  if (outer === undefined || inner === undefined) return false;
  if (outer.port !== undefined && outer.port !== inner.port) return false;
  if (outer.host === "*" || outer.host === inner.host) return true;
  return outer.host.startsWith("*.") && inner.host !== "*" && inner.host.endsWith(outer.host.slice(1));
}
