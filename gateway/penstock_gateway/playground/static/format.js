// Numbers and names in words.

const OUTCOMES = {
  disabled: "There was none",
  natural_end: "The model ended it",
  budget_reached: "The budget was spent",
  finished_by_client: "You asked for the answer",
  deadline: "To answer before the deadline",
  max_output_tokens: "The output limit cut it",
  cancelled: "You stopped it",
  stop_pattern: "A stop pattern showed",
  converged: "The answer was certain",
};

/** Returns how a thought ended, in words. */
export const outcomeOf = (name) => OUTCOMES[name] ?? "It is not known";

export const tokens = (count) => `${count.toLocaleString("en")} ${count === 1 ? "token" : "tokens"}`;

/** Returns an amount of money. Small ones keep three digits that say something. */
export function usd(amount) {
  if (amount === 0) return "0 USD";
  const digits = amount >= 0.01 ? 4 : Math.min(10, 2 - Math.floor(Math.log10(amount)));
  return `${amount.toFixed(digits)} USD`;
}

export const seconds = (value) => (value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(1)} s`);

/** Returns the tokens for a place of the slider in [0, 100]: 0, then even steps of a factor, up to `most`. */
export function budgetAt(place, most) {
  if (place <= 0) return 0;
  return Math.round(Math.exp((Math.log(Math.max(2, most)) * place) / 100));
}

/** Returns the cost in USD of so many tokens by a price list; undefined without one. */
export function costOf(prices, { prompt = 0, cached = 0, output = 0 }) {
  if (prices.length === 0) return undefined;
  const tier = prices.find(({ up_to_prompt_tokens: most }) => most === null || prompt <= most) ?? prices.at(-1);
  const million =
    (prompt - cached) * tier.input_usd_per_million + cached * tier.cached_usd_per_million + output * tier.output_usd_per_million;
  return million / 1e6;
}
