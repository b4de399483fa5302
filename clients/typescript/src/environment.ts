/** Reads absent options from the environment, with the same names as the other clients and the command line. */
import { readFileSync } from "node:fs";

export const DEFAULT_TARGET = "127.0.0.1:50051";

/** Returns PENSTOCK_TARGET, else the default. */
export const targetOf = (given: string | undefined) => given || process.env.PENSTOCK_TARGET || DEFAULT_TARGET;

/** Returns PENSTOCK_API_KEY or the content of the file PENSTOCK_API_KEY_FILE. An empty key is none. */
export function apiKeyOf(given: string | undefined): string | undefined {
  const { PENSTOCK_API_KEY, PENSTOCK_API_KEY_FILE } = process.env;
  const file = () => (PENSTOCK_API_KEY_FILE ? readFileSync(PENSTOCK_API_KEY_FILE, "utf8").trim() : undefined);
  const key = (given ?? (PENSTOCK_API_KEY || file())) || undefined;
  if (key !== undefined && !/^[\x20-\x7e]+$/.test(key)) {
    throw new TypeError("the API key must be printable ASCII, got another character; remove line breaks and quotation marks");
  }
  return key;
}

/** Returns PENSTOCK_CA_FILE, or PENSTOCK_TLS (true or false). */
export function tlsOf<T>(given: T | undefined): T | boolean | string | undefined {
  if (given !== undefined) return given;
  const said = (process.env.PENSTOCK_TLS ?? "").toLowerCase();
  if (["0", "false", "no", "off"].includes(said)) return false;
  if (said !== "" && !["1", "true", "yes", "on"].includes(said)) {
    throw new TypeError(`PENSTOCK_TLS must be true or false, got ${said}`);
  }
  return process.env.PENSTOCK_CA_FILE || (said ? true : undefined);
}
