//! A reader of Python pickles that holds tensors: it builds containers, numbers and text and runs no code. Any other opcode or global is
//! refused with its name.
//!
//! Values lie in an arena and refer to each other by index, so that neither depth nor cycles of a hostile file overflow the stack, and
//! each opcode makes at most one value, so that memory is bounded by the length of the file.

use std::collections::HashMap;

/// Index of a [`Value`] in [`Pickle::values`].
pub(super) type Id = usize;

/// A value of the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// `None`, floats, bytes, and the result of calls of which only the existence matters.
    Opaque,
    Bool(bool),
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// Module and name, one of [`GLOBALS`].
    Global(&'static str),
    /// Argument of a persistent id.
    Storage(Id),
    /// Arguments of `_rebuild_tensor_v2`.
    Tensor(Id),
}

/// Globals that may occur.
const GLOBALS: [&str; 14] = [
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch DoubleStorage",
    "torch FloatStorage",
    "torch HalfStorage",
    "torch BFloat16Storage",
    "torch LongStorage",
    "torch IntStorage",
    "torch ShortStorage",
    "torch CharStorage",
    "torch ByteStorage",
    "torch BoolStorage",
];

/// The values of one pickle.
#[derive(Debug, Default)]
pub(super) struct Pickle {
    values: Vec<Value>,
    /// Result of the pickle.
    pub root: Id,
    /// Bytes of the file that it takes.
    pub length: usize,
}

impl Pickle {
    pub(super) fn get(&self, id: Id) -> &Value {
        &self.values[id]
    }

    /// Parses the pickle at the start of `bytes`.
    ///
    /// # Errors
    /// A truncated file, an opcode or a global that is not supported.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut machine = Machine {
            input: bytes,
            at: 0,
            pickle: Self::default(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            copied: 0,
        };
        while machine.step()? {}
        let root = machine.pop()?;
        Ok(Self { root, length: machine.at, ..machine.pickle })
    }
}

struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    pickle: Pickle,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Entries that calls have copied.
    copied: usize,
}

impl<'a> Machine<'a> {
    /// Executes an opcode; false after the last one.
    fn step(&mut self) -> Result<bool, String> {
        let opcode = self.take(1)?[0];
        match opcode {
            b'.' => return Ok(false),
            0x80 => drop(self.take(1)?),               // PROTO
            0x95 => drop(self.take(8)?),               // FRAME
            b'(' => self.marks.push(self.stack.len()), // MARK
            b'0' => drop(self.pop()?),                 // POP
            b'q' | b'r' | 0x94 => self.memoize(opcode)?,
            b'h' | b'j' => self.recall(opcode)?,
            b'N' | 0x88 | 0x89 | b'J' | b'K' | b'M' | 0x8a | b'G' => self.number(opcode)?,
            b'X' | 0x8c | 0x8d | b'U' | b'T' | b'C' | b'B' => self.text(opcode)?,
            b'}' | b']' | b')' | b't' | 0x85..=0x87 | b'd' | b'l' => self.container(opcode)?,
            b's' | b'u' | b'a' | b'e' => self.fill(opcode)?,
            b'c' | 0x93 => self.global(opcode)?,
            b'R' => self.call()?,
            b'b' => drop(self.pop()?), // BUILD: attributes, such as `_metadata` of a state dict
            b'Q' => {
                let arguments = self.pop()?;
                self.push(Value::Storage(arguments));
            }
            other => return Err(format!("opcode 0x{other:02x} of pickle is not supported")),
        }
        Ok(true)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.input.len());
        let end = end.ok_or("the pickle is truncated")?;
        let bytes = &self.input[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    /// A little-endian unsigned number of `count` bytes, at most 8.
    fn unsigned(&mut self, count: usize) -> Result<u64, String> {
        let bytes = self.take(count)?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn push(&mut self, value: Value) {
        self.pickle.values.push(value);
        self.stack.push(self.pickle.values.len() - 1);
    }

    fn pop(&mut self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let value = if self.stack.len() > floor { self.stack.pop() } else { None };
        value.ok_or_else(|| "the pickle's stack is empty".into())
    }

    /// The values above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("the pickle lacks a mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn memoize(&mut self, opcode: u8) -> Result<(), String> {
        let key = match opcode {
            b'q' => self.unsigned(1)? as u32,
            b'r' => self.unsigned(4)? as u32,
            _ => self.memo.len() as u32,
        };
        let top = *self.stack.last().ok_or("the pickle's stack is empty")?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, opcode: u8) -> Result<(), String> {
        let key = self.unsigned(if opcode == b'h' { 1 } else { 4 })? as u32;
        let id = *self.memo.get(&key).ok_or("the pickle refers to a missing value")?;
        self.stack.push(id);
        Ok(())
    }

    fn number(&mut self, opcode: u8) -> Result<(), String> {
        let value = match opcode {
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'J' => Value::Int(i64::from(self.unsigned(4)? as i32)),
            b'K' => Value::Int(self.unsigned(1)? as i64),
            b'M' => Value::Int(self.unsigned(2)? as i64),
            0x8a => self.long()?,
            b'G' => {
                self.take(8)?;
                Value::Opaque
            }
            _ => Value::Opaque,
        };
        self.push(value);
        Ok(())
    }

    /// LONG1: two's complement; opaque beyond 64 bits.
    fn long(&mut self) -> Result<Value, String> {
        let count = self.unsigned(1)? as usize;
        let bytes = self.take(count)?;
        if count > 8 {
            let fits = bytes[8..].iter().all(|byte| *byte == 0) && bytes[7] < 0x80;
            let low = i64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
            return Ok(if fits { Value::Int(low) } else { Value::Opaque });
        }
        let sign = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 };
        let mut whole = [sign; 8];
        whole[..count].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(whole)))
    }

    /// Text is UTF-8; byte strings are kept if they are ASCII, as Python 2 wrote names.
    fn text(&mut self, opcode: u8) -> Result<(), String> {
        let count = match opcode {
            b'X' | b'T' | b'B' => self.unsigned(4)?,
            0x8d => self.unsigned(8)?,
            _ => self.unsigned(1)?,
        };
        let bytes = self.take(usize::try_from(count).unwrap_or(usize::MAX))?;
        let value = match std::str::from_utf8(bytes) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::Opaque,
        };
        self.push(value);
        Ok(())
    }

    fn container(&mut self, opcode: u8) -> Result<(), String> {
        let value = match opcode {
            b'}' => Value::Dict(Vec::new()),
            b']' => Value::List(Vec::new()),
            b')' => Value::Tuple(Vec::new()),
            b't' => Value::Tuple(self.pop_mark()?),
            b'l' => Value::List(self.pop_mark()?),
            b'd' => Value::Dict(pairs(&self.pop_mark()?)?),
            count => {
                let mut items = Vec::new();
                for _ in 0x84..count {
                    items.push(self.pop()?);
                }
                items.reverse();
                Value::Tuple(items)
            }
        };
        self.push(value);
        Ok(())
    }

    /// SETITEM, SETITEMS, APPEND, APPENDS.
    fn fill(&mut self, opcode: u8) -> Result<(), String> {
        let items = match opcode {
            b'u' | b'e' => self.pop_mark()?,
            b'a' => vec![self.pop()?],
            _ => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
        };
        let target = *self.stack.last().ok_or("the pickle's stack is empty")?;
        match &mut self.pickle.values[target] {
            Value::Dict(entries) if matches!(opcode, b's' | b'u') => entries.extend(pairs(&items)?),
            Value::List(entries) if matches!(opcode, b'a' | b'e') => entries.extend(items),
            _ => return Err("the pickle fills something that is no container".into()),
        }
        Ok(())
    }

    fn global(&mut self, opcode: u8) -> Result<(), String> {
        let name = if opcode == b'c' {
            let module = self.line()?;
            format!("{module} {}", self.line()?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (&self.pickle.values[module], &self.pickle.values[name]) {
                (Value::Text(module), Value::Text(name)) => format!("{module} {name}"),
                _ => return Err("a global of the pickle has no name".into()),
            }
        };
        let known = GLOBALS.iter().find(|known| **known == name);
        let known = known.ok_or_else(|| format!("it contains `{}`", name.replace(' ', ".")))?;
        self.push(Value::Global(known));
        Ok(())
    }

    /// Text up to a line break.
    fn line(&mut self) -> Result<String, String> {
        let rest = &self.input[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or("the pickle is truncated")?;
        let line = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.at += length + 1;
        Ok(line)
    }

    /// REDUCE of a permitted global.
    fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Tuple(items) = &self.pickle.values[arguments] else {
            return Err("a call in the pickle has no arguments".into());
        };
        let first = items.first().copied();
        let value = match self.pickle.values[function] {
            Value::Global("torch._utils _rebuild_tensor_v2") => Value::Tensor(arguments),
            Value::Global("torch._utils _rebuild_parameter") => {
                // Arguments: the tensor, requires_grad, hooks.
                let tensor = first.map(|id| self.pickle.get(id));
                match tensor {
                    Some(Value::Tensor(arguments)) => Value::Tensor(*arguments),
                    _ => return Err("a parameter in the pickle has no tensor".into()),
                }
            }
            Value::Global("collections OrderedDict") => Value::Dict(self.entries(first)?),
            Value::Global("torch Size") => Value::Opaque,
            _ => return Err("the pickle calls something that is no function".into()),
        };
        self.push(value);
        Ok(())
    }

    /// Entries of `OrderedDict([[key, value], ...])`; none of `OrderedDict()`.
    fn entries(&mut self, list: Option<Id>) -> Result<Vec<(Id, Id)>, String> {
        let Some(list) = list else { return Ok(Vec::new()) };
        let Value::List(items) = &self.pickle.values[list] else {
            return Err("an OrderedDict in the pickle is not made from a list".into());
        };
        let pair = |item: &Id| match &self.pickle.values[*item] {
            Value::List(pair) | Value::Tuple(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
            _ => Err("an entry of an OrderedDict in the pickle is no pair".to_owned()),
        };
        self.copied += items.len();
        if self.copied > self.input.len() {
            return Err("the pickle copies a list many times".into());
        }
        items.iter().map(pair).collect()
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, String> {
    if items.len() % 2 == 1 {
        return Err("a dict in the pickle has a key without a value".into());
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}
