//! The parser's states: text, reasoning, a block of calls, a call's arguments.

use super::{
    Delta, ParsedAnswer,
    cursor::{Stop, find},
    heads::{Head, Tools},
    json::{Scan, Scanner},
    syntax::{FENCE, Syntax},
};
use crate::tools::{Reasoning, ReasoningTags, ToolDefinition, ToolFormat, id};

/// Takes a model's answer as it comes and tells text, reasoning and calls apart.
///
/// It needs the text with the [markers](ToolFormat::markers) shown, many of which are control tokens
/// that a detokenizer leaves out unless told otherwise; without end-of-turn tokens.
///
/// Nothing is lost: what looks like a call and is none comes out as text, and the arguments of a call
/// that goes wrong in the middle come out as the model wrote them. Only white space beside calls and
/// reasoning is left out.
///
/// ```
/// use biplane::tools::{Delta, ToolDefinition, ToolFormat, ToolParser};
/// # use serde_json::json;
/// let tools = [ToolDefinition::new("add", json!({"type": "object"}))];
/// let mut parser = ToolParser::new(Some(ToolFormat::Hermes), &tools);
/// let first = parser.feed("Let me see.\n<tool_call>\n{\"name\": \"add\", \"argu");
/// assert_eq!(first, [Delta::Content("Let me see.".into())]);
/// let second = parser.feed("ments\": {\"a\": 1}}\n</tool_call>");
/// assert!(matches!(&second[0], Delta::CallStart { index: 0, name, .. } if name == "add"));
/// let arguments = Delta::CallArguments { index: 0, json_fragment: "{\"a\": 1}".into() };
/// assert_eq!(second[1], arguments);
/// assert_eq!(parser.finish(), []);
/// ```
#[derive(Clone, Debug)]
pub struct ToolParser {
    syntax: Syntax,
    tools: Tools,
    /// Tags of reasoning that may still come.
    reasoning: Option<ReasoningTags>,
    state: State,
    /// What has not been understood yet.
    rest: String,
    /// What was read of a block of calls, in case it is none.
    block: String,
    /// White space that is given only when text follows.
    space: String,
    /// Whether content, or reasoning, has been given since its beginning.
    said: bool,
    /// Whether white space stands beside a call or reasoning.
    after_markup: bool,
    calls: usize,
    out: Vec<Delta>,
}

#[derive(Clone, Debug)]
enum State {
    /// Nothing but white space so far.
    Start,
    Reasoning(ReasoningTags),
    Text,
    Block(Block),
    /// Within a call's arguments; `object` when they are within the call's object.
    Arguments {
        block: Block,
        object: bool,
        scanner: Scanner,
    },
    /// After a call's arguments.
    Tail {
        block: Block,
        object: bool,
    },
    /// Within arguments that are no JSON.
    Broken {
        block: Block,
    },
}

/// A block of calls.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// What is not marked as a call is one only when it calls a known tool.
    only_known: bool,
    close: Option<&'static str>,
    /// Calls read so far.
    calls: usize,
    list: List,
}

impl Block {
    fn new(only_known: bool, close: Option<&'static str>) -> Self {
        Self {
            only_known,
            close,
            calls: 0,
            list: List::No,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    No,
    Open,
    Closed,
}

impl ToolParser {
    /// A parser for a format, and for these tools; without a format no calls are looked for.
    pub fn new(format: Option<ToolFormat>, tools: &[ToolDefinition]) -> Self {
        Self {
            syntax: format.map_or(Syntax::NONE, Syntax::of),
            tools: Tools::new(tools),
            reasoning: None,
            state: State::Start,
            rest: String::new(),
            block: String::new(),
            space: String::new(),
            said: false,
            after_markup: false,
            calls: 0,
            out: Vec::new(),
        }
    }

    /// Takes reasoning apart, too.
    pub fn with_reasoning(mut self, reasoning: Reasoning) -> Self {
        match reasoning {
            Reasoning::None => {}
            Reasoning::Possible(tags) => self.reasoning = Some(tags),
            Reasoning::Begun(tags) => self.state = State::Reasoning(tags),
        }
        self
    }

    /// Takes the next piece of the answer, and gives what is certain now.
    pub fn feed(&mut self, text: &str) -> Vec<Delta> {
        self.rest.push_str(text);
        while self.step(false) {}
        std::mem::take(&mut self.out)
    }

    /// Gives what is left at the answer's end.
    pub fn finish(mut self) -> Vec<Delta> {
        while self.step(true) {}
        if !self.after_markup {
            let space = std::mem::take(&mut self.space);
            if !space.is_empty() {
                self.give(Delta::Content(space));
            }
        }
        self.out
    }

    /// Parses a whole answer.
    pub fn parse(mut self, text: &str) -> ParsedAnswer {
        let mut answer = ParsedAnswer::default();
        let first = self.feed(text);
        for delta in first.into_iter().chain(self.finish()) {
            answer.push(delta);
        }
        answer
    }

    /// One step forward; false when only more text helps. `done` when no more comes.
    fn step(&mut self, done: bool) -> bool {
        match self.state.clone() {
            State::Start => self.start(done),
            State::Reasoning(tags) => self.think(tags, done),
            State::Text => self.text(done),
            State::Block(block) => self.block(block, done),
            State::Arguments {
                block,
                object,
                scanner,
            } => self.arguments(block, object, scanner),
            State::Tail { block, object } => {
                let length = match self.syntax.item.tail(&self.rest, object) {
                    Err(Stop::More) if !done => return false,
                    length => length.unwrap_or(0),
                };
                self.take(length);
                self.state = State::Block(Block {
                    calls: block.calls + 1,
                    ..block
                });
                true
            }
            State::Broken { block } => self.broken(block, done),
        }
    }

    fn start(&mut self, done: bool) -> bool {
        let space = self.rest.len() - self.rest.trim_start().len();
        let space = self.take(space);
        self.space.push_str(&space);
        if self.rest.is_empty() {
            return false;
        }
        if let Some(tags) = self.reasoning {
            if self.rest.starts_with(tags.open) {
                self.take(tags.open.len());
                self.reasoning = None;
                self.space.clear();
                self.state = State::Reasoning(tags);
                return true;
            }
            if !done && tags.open.starts_with(&self.rest) {
                return false;
            }
        }
        self.state = if self.syntax.bare && self.rest.starts_with(['{', '[']) {
            State::Block(Block::new(true, None))
        } else {
            State::Text
        };
        true
    }

    fn think(&mut self, tags: ReasoningTags, done: bool) -> bool {
        let (length, closed) = match find(&self.rest, &[tags.close]) {
            Ok((at, _)) => (at, true),
            Err(_) if done => (self.rest.len(), false),
            Err(at) => (at, false),
        };
        let text = self.take(length);
        if let Some(text) = self.spaced(&text, true) {
            self.give(Delta::Reasoning(text));
        }
        if closed {
            self.take(tags.close.len());
            self.state = State::Start;
        } else if !done {
            return false;
        }
        self.space.clear();
        self.said = false;
        self.after_markup = true;
        closed
    }

    fn text(&mut self, done: bool) -> bool {
        match find(&self.rest, self.syntax.openers) {
            Ok((at, opener)) => {
                let text = self.take(at);
                self.content(&text);
                self.block = self.take(opener.len());
                let fenced = opener.starts_with(FENCE);
                let close = if fenced {
                    Some(FENCE)
                } else {
                    self.syntax.close
                };
                self.state = State::Block(Block::new(fenced, close));
                true
            }
            Err(at) => {
                let text = self.take(if done { self.rest.len() } else { at });
                self.content(&text);
                false
            }
        }
    }

    /// Between the calls of a block.
    fn block(&mut self, mut block: Block, done: bool) -> bool {
        // A bracket too many before the end is no text for the reader.
        let between = |c: char| {
            c.is_whitespace()
                || block.calls > 0 && ",;".contains(c)
                || block.calls > 0
                    && block.list != List::Open
                    && block.close.is_some()
                    && "]}".contains(c)
        };
        let length = self.rest.find(|c| !between(c)).unwrap_or(self.rest.len());
        self.hold(length);
        if self.rest.is_empty() {
            return done && self.leave();
        }
        if block.list == List::Open && self.rest.starts_with(']') {
            self.hold(1);
            if block.calls > 0 {
                self.block.clear();
            }
            block.list = List::Closed;
            self.state = State::Block(block);
            return true;
        }
        if let Some(close) = block.close.filter(|_| block.calls > 0) {
            if self.rest.starts_with(close) {
                self.take(close.len());
                self.block.clear();
                self.state = State::Text;
                return true;
            }
            if !done && close.starts_with(&self.rest) {
                return false;
            }
        }
        if block.list == List::Closed {
            return self.leave();
        }
        let item = self.syntax.item;
        if block.calls == 0
            && block.list == List::No
            && item.takes_list()
            && self.rest.starts_with('[')
        {
            self.hold(1);
            block.list = List::Open;
            self.state = State::Block(block);
            return true;
        }
        match item.head(&self.rest, &self.tools, block.only_known) {
            Ok(Head::Open { name, at }) => {
                let object = self.rest.starts_with('{');
                self.take(at);
                self.call(name);
                self.state = State::Arguments {
                    block,
                    object,
                    scanner: Scanner::default(),
                };
                true
            }
            Ok(Head::Whole {
                name,
                arguments,
                end,
            }) => {
                self.take(end);
                self.call(name);
                self.give_arguments(arguments);
                block.calls += 1;
                self.state = State::Block(block);
                true
            }
            Err(Stop::More) if !done => false,
            Err(_) => self.leave(),
        }
    }

    /// Ends a block at what is no call: what was read of it and understood as nothing is text.
    fn leave(&mut self) -> bool {
        let read = std::mem::take(&mut self.block);
        self.content(&read);
        self.state = State::Text;
        true
    }

    fn arguments(&mut self, block: Block, object: bool, mut scanner: Scanner) -> bool {
        let scan = scanner.feed(&self.rest);
        let (length, state) = match scan {
            Scan::More => {
                let state = State::Arguments {
                    block,
                    object,
                    scanner,
                };
                (self.rest.len(), state)
            }
            Scan::End(at) => (at, State::Tail { block, object }),
            Scan::Wrong(at) => (at, State::Broken { block }),
        };
        let fragment = self.take(length);
        self.give_arguments(fragment);
        self.state = state;
        scan != Scan::More
    }

    /// Gives everything up to the block's end as arguments.
    fn broken(&mut self, mut block: Block, done: bool) -> bool {
        let end = self.syntax.item.end().or(block.close);
        let found = end.map_or(Err(self.rest.len()), |end| find(&self.rest, &[end]));
        let length = match found {
            Ok((at, _)) => at,
            Err(_) if done => self.rest.len(),
            Err(at) => at,
        };
        let fragment = self.take(length);
        self.give_arguments(fragment);
        if found.is_ok() {
            let own = self.syntax.item.end().map_or(0, str::len);
            self.take(own);
            block.calls += 1;
            self.state = State::Block(block);
        }
        found.is_ok()
    }

    /// The first bytes of what is not understood yet.
    fn take(&mut self, length: usize) -> String {
        let rest = self.rest.split_off(length);
        std::mem::replace(&mut self.rest, rest)
    }

    /// Reads on within a block.
    fn hold(&mut self, length: usize) {
        let read = self.take(length);
        self.block.push_str(&read);
    }

    fn call(&mut self, name: String) {
        self.block.clear();
        self.after_markup = true;
        let index = self.calls;
        self.calls += 1;
        self.give(Delta::CallStart {
            index,
            id: id::next(),
            name,
        });
    }

    fn give_arguments(&mut self, json_fragment: String) {
        if !json_fragment.is_empty() {
            self.give(Delta::CallArguments {
                index: self.calls.saturating_sub(1),
                json_fragment,
            });
        }
    }

    fn content(&mut self, text: &str) {
        if let Some(text) = self.spaced(text, self.after_markup) {
            self.after_markup = false;
            self.give(Delta::Content(text));
        }
    }

    /// The text with the white space before it, without what follows it: that waits until text
    /// comes. Without any in front of the first text when `trimmed`.
    fn spaced(&mut self, text: &str, trimmed: bool) -> Option<String> {
        let end = text.trim_end().len();
        let (text, after) = text.split_at_checked(end).unwrap_or((text, ""));
        self.space.push_str(text);
        if text.is_empty() {
            self.space.push_str(after);
            return None;
        }
        let mut given = std::mem::replace(&mut self.space, after.to_owned());
        if trimmed && !self.said {
            given.drain(..given.len() - given.trim_start().len());
        }
        self.said = true;
        Some(given)
    }

    /// Pieces of one kind that come at once are one.
    fn give(&mut self, delta: Delta) {
        match (self.out.last_mut(), delta) {
            (Some(Delta::Content(text)), Delta::Content(more))
            | (Some(Delta::Reasoning(text)), Delta::Reasoning(more)) => text.push_str(&more),
            (
                Some(Delta::CallArguments {
                    index,
                    json_fragment,
                }),
                Delta::CallArguments {
                    index: same,
                    json_fragment: more,
                },
            ) if *index == same => json_fragment.push_str(&more),
            (_, delta) => self.out.push(delta),
        }
    }
}
