/** Node client of Penstock. */
export { Client, RETRY_READS_SERVICE_CONFIG, type CallOptions, type ClientOptions, type Input, type Logger, type StreamOptions } from "./client.js";
export { Conversation } from "./conversation.js";
export {
  BrokenStream, BudgetDoesNotFit, CallerRefused, Cancelled, ContextOverflow, DeadlineExceeded, FeatureOff,
  GenerationNotFound, InvalidRequest, MessageTooLarge, ModelNotFound, NotImplementedYet, Overloaded, PenstockError,
  PoisonousRequest, ServerFault, Unavailable, fromServiceError, type Failure, type FieldViolation,
} from "./errors.js";
export type { Continued, Event, Finished, Interrupted, Started, TextDelta, ThinkingFinished } from "./events.js";
export { GenerationSpecSchema, type GenerationSpec } from "./gen/penstock/v1/generation_pb.js";
export type { CountTokensResponse, Cost, EffectiveSettings, Timing, Usage } from "./gen/penstock/v1/generation_pb.js";
export type { GetModelResponse } from "./gen/penstock/v1/model_pb.js";
export { RECONNECT, type Reconnect } from "./reconnect.js";
export {
  Candidate,
  finishReasonName,
  interruptionReasonName,
  Response,
  thinkingModeName,
  thinkingOutcomeName,
  type FinishReasonName,
  type InterruptionReasonName,
  type ThinkingModeName,
  type ThinkingOutcomeName,
} from "./response.js";
export { buildSpec, type GenerationOptions, type Message, type Prompt } from "./spec.js";
export { Interaction, Stream } from "./stream.js";
export { VERSION } from "./version.js";
