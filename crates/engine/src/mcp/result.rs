//! What a tool gives, as text for the model.

use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};

use crate::tools::ToolOutcome;

/// Most bytes of a result: more is no use to a model, and would fill its context many times over.
pub(super) const MOST_TEXT: usize = 1024 * 1024;

/// The texts of a result, each on lines of its own, and other contents in words.
pub(super) fn outcome(result: CallToolResult) -> ToolOutcome {
    let parts: Vec<String> = result.content.iter().map(words).collect();
    let mut text = parts.join("\n");
    if text.is_empty()
        && let Some(value) = &result.structured_content
    {
        text = value.to_string();
    }
    if text.len() > MOST_TEXT {
        return Err(format!(
            "its result has {} bytes, at most {MOST_TEXT} are allowed",
            text.len()
        ));
    }
    match result.is_error {
        Some(true) if text.is_empty() => Err("it failed, and did not say why".into()),
        Some(true) => Err(text),
        _ => Ok(text),
    }
}

/// A content as text.
pub(super) fn words(content: &ContentBlock) -> String {
    match content {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(image) => format!("[an image, {}]", image.mime_type),
        ContentBlock::Audio(audio) => format!("[a sound, {}]", audio.mime_type),
        ContentBlock::ResourceLink(link) => format!("[a resource {:?} at {}]", link.name, link.uri),
        ContentBlock::Resource(resource) => resource_words(&resource.resource),
        _ => "[a content of a kind that is not known]".into(),
    }
}

/// A resource's text.
pub(super) fn resource_words(contents: &ResourceContents) -> String {
    match contents {
        ResourceContents::TextResourceContents { text, .. } => text.clone(),
        ResourceContents::BlobResourceContents { uri, mime_type, .. } => {
            let kind = mime_type.as_deref().unwrap_or("of an unknown type");
            format!("[a file at {uri}, {kind}]")
        }
        _ => "[a resource of a kind that is not known]".into(),
    }
}
