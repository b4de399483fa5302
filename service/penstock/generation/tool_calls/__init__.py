"""Tool calls in the text of an answer: `ToolCallParser` finds them as the text comes."""

from penstock.generation.tool_calls.parser import ToolCallParser
from penstock.generation.tool_calls.pieces import CallArguments, CallFinished, CallStarted, Piece, TextPiece

__all__ = ["ToolCallParser", "Piece", "TextPiece", "CallStarted", "CallArguments", "CallFinished"]
