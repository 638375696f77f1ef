/** What the configuration knows of a model. */
export type ModelLimits = { readonly contextWindow: number; readonly maxOutputTokens: number };

/** Limits of the model that a provider knows by this id; undefined where the configuration says nothing. */
export type LimitsOf = (model: string) => ModelLimits | undefined;

/** Wider than any window on the market, for models whose own is unknown. */
const widestContextWindow = 10_000_000;

/** A count above this is not believed (contract §6: 100 × the model's context window). */
export const mostBelievableTokens = (limits: ModelLimits | undefined): number => 100 * (limits?.contextWindow ?? widestContextWindow);
