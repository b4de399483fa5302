/** Node client of Penstock. */
export { Client, RETRY_READS_SERVICE_CONFIG, type CallOptions, type ClientOptions, type Input, type Logger, type StreamOptions } from "./client.js";
export { Conversation } from "./conversation.js";
export {
  BrokenStream, BudgetDoesNotFit, CallerRefused, Cancelled, ContextOverflow, DeadlineExceeded, FeatureOff,
  GenerationNotFound, InvalidRequest, MessageTooLarge, ModelNotFound, NotImplementedYet, Overloaded, PenstockError,
  PoisonousRequest, ServerFault, TurnLimitReached, Unavailable, UnparsableAnswer, fromServiceError, type Failure, type FieldViolation,
} from "./errors.js";
export type {
  Continued, Event, Finished, Interrupted, Started, TextDelta, ThinkingFinished, ToolCallArguments, ToolCallFinished,
  ToolCallStarted,
} from "./events.js";
export { GenerationSpecSchema, type GenerationSpec } from "./gen/penstock/v1/generation_pb.js";
export type { CountTokensResponse, Cost, EffectiveSettings, SteerResponse, Timing, Usage } from "./gen/penstock/v1/generation_pb.js";
export type { GetModelResponse } from "./gen/penstock/v1/model_pb.js";
export { RECONNECT, type Reconnect } from "./reconnect.js";
export {
  Candidate,
  effortName,
  finishReasonName,
  generationPhaseName,
  interruptionReasonName,
  Response,
  thinkingModeName,
  thinkingOutcomeName,
  toolModeName,
  type EffortName,
  type FinishReasonName,
  type GenerationPhaseName,
  type InterruptionReasonName,
  type ThinkingModeName,
  type ThinkingOutcomeName,
  type ToolModeName,
} from "./response.js";
export {
  imagePart, toolMessage, type ImagePart, type Message, type Part, type PlainMessage, type TextPart, type ThoughtPart, type ToolCall,
  type ToolCallPart, type ToolResult, type ToolResultPart,
} from "./messages.js";
export { buildSpec, type GenerationOptions, type OpenAITool, type Prompt } from "./spec.js";
export { Run, tool, ToolError, type RunOptions, type Schema, type Tool, type ToolContext, type Turn } from "./tools.js";
export { Interaction, Stream, type SteerAction } from "./stream.js";
export { VERSION } from "./version.js";
