/**
 * Ends what runs when Ctrl-C or SIGTERM ends the process, which by itself would be a lost connection to the server, and
 * the generation would run on. Only while streams are open, and only where the program does not listen to the signal.
 */
const SIGNALS = ["SIGINT", "SIGTERM"] as const;
const open = new Set<() => Promise<void>>();

/** Has `close` called, once, before a signal ends the process. */
export function closeAtSignals(close: () => Promise<void>): void {
  if (open.size === 0) for (const signal of SIGNALS) process.on(signal, onSignal);
  open.add(close);
}

export function forgetSignals(close: () => Promise<void>): void {
  if (!open.delete(close) || open.size > 0) return;
  for (const signal of SIGNALS) process.removeListener(signal, onSignal);
}

function onSignal(signal: NodeJS.Signals): void {
  if (process.listenerCount(signal) > 1) return; // the program decides
  // Closing forgets, so that a second signal ends the process at once.
  void Promise.allSettled([...open].map((close) => close())).then(() => process.kill(process.pid, signal));
}
