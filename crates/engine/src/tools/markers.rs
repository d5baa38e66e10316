//! What models write around their calls. Most are control tokens in the vocabularies.

pub(super) const PYTHON_TAG: &str = "<|python_tag|>";
pub(super) const HERMES: &str = "<tool_call>";
pub(super) const HERMES_END: &str = "</tool_call>";
pub(super) const MISTRAL: &str = "[TOOL_CALLS]";
pub(super) const MISTRAL_ARGS: &str = "[ARGS]";
pub(super) const MISTRAL_CALL_ID: &str = "[CALL_ID]";
pub(super) const DEEPSEEK: &str = "<｜tool▁calls▁begin｜>";
pub(super) const DEEPSEEK_END: &str = "<｜tool▁calls▁end｜>";
pub(super) const DEEPSEEK_CALL: &str = "<｜tool▁call▁begin｜>";
pub(super) const DEEPSEEK_CALL_END: &str = "<｜tool▁call▁end｜>";
pub(super) const DEEPSEEK_SEP: &str = "<｜tool▁sep｜>";
pub(super) const PHI: &str = "<|tool_call|>";
pub(super) const PHI_END: &str = "<|/tool_call|>";
pub(super) const COMMAND: &str = "<|START_ACTION|>";
pub(super) const COMMAND_END: &str = "<|END_ACTION|>";
pub(super) const FUNCTION: &str = "<function=";
pub(super) const FUNCTION_END: &str = "</function>";
