/**
 * Ends the running generations when Ctrl-C or SIGTERM ends the process. Otherwise the server would see a lost
 * connection and continue them. It acts only while streams are open, and only if the program has no handler for the signal.
 */
const SIGNALS = ["SIGINT", "SIGTERM"] as const;
const open = new Set<() => Promise<void>>();

/** Calls `close` once before a signal ends the process. */
export function closeAtSignals(close: () => Promise<void>): void {
  if (open.size === 0) for (const signal of SIGNALS) process.on(signal, onSignal);
  open.add(close);
}

export function forgetSignals(close: () => Promise<void>): void {
  if (!open.delete(close) || open.size > 0) return;
  for (const signal of SIGNALS) process.removeListener(signal, onSignal);
}

function onSignal(signal: NodeJS.Signals): void {
  if (process.listenerCount(signal) > 1) return; // The program handles it.
  // Closing removes the handlers, so that a second signal ends the process at once.
  void Promise.allSettled([...open].map((close) => close())).then(() => process.kill(process.pid, signal));
}
