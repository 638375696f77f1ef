/** What the bench and its model server agree on. */
export const fastModel = "bench-fast";
export const slowModel = "bench-slow";
export const slowModelMs = 200;
