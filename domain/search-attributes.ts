/** The search attributes of contract §1 and their Temporal types. Ids only: they are never encrypted. */
export const searchAttributeTypes = {
  TenantId: "Keyword",
  Channel: "Keyword",
  TurnKind: "Keyword",
  SessionId: "KeywordList",
  TurnId: "KeywordList",
} as const;

/** How many of the newest ids a list attribute holds. */
export const searchAttributeListLength = 20;
