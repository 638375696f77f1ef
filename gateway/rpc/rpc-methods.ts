import { type AccountMethodDeps, createAccountMethods } from "./account-methods.ts";
import { type ChatMethodDeps, createChatMethods } from "./chat-methods.ts";
import type { RpcMethod } from "./rpc-method.ts";
import { createSessionMethods } from "./session-methods.ts";

export type RpcMethodDeps = AccountMethodDeps & ChatMethodDeps;

/** The table of `/rpc`. A method that is not in it does not exist. */
export const createRpcMethods = (deps: RpcMethodDeps): readonly RpcMethod[] => [
  ...createAccountMethods(deps),
  ...createChatMethods(deps),
  ...createSessionMethods(deps),
];
