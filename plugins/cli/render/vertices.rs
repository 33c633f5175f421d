//! What the renderers know about each vertex, and what the summary counts.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bareboat_core::{
    digest::Digest,
    event::{OutputStream, VertexId, VertexKind, VertexResult},
};

use super::{
    lines::LineCutter,
    style,
    text::{message, shortened},
};

/// The longest name that is shown of a vertex, in characters.
const NAME_CHARACTERS_MAX: usize = 1000;

/// Time since the build began.
pub struct Clock(Box<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    pub fn start() -> Self {
        let start = Instant::now();
        Clock(Box::new(move || start.elapsed()))
    }

    #[cfg(test)]
    pub fn of(read: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Clock(Box::new(read))
    }

    pub fn now(&self) -> Duration {
        (self.0)()
    }
}

/// One vertex that has started.
pub struct Vertex {
    /// From 1, in the order of starting.
    pub number: u32,
    /// One printable line.
    pub name: String,
    pub started: Duration,
    kind: VertexKind,
    stdout: LineCutter,
    stderr: LineCutter,
}

impl Vertex {
    /// Cuts output into lines.
    pub fn output(&mut self, stream: OutputStream, bytes: &[u8], take: impl FnMut(&[u8])) {
        match stream {
            OutputStream::Stdout => self.stdout.push(bytes, take),
            OutputStream::Stderr => self.stderr.push(bytes, take),
        }
    }

    /// Hands out what has no line break yet.
    pub fn finish(&mut self, stream: OutputStream, take: impl FnMut(&[u8])) {
        match stream {
            OutputStream::Stdout => self.stdout.finish(take),
            OutputStream::Stderr => self.stderr.finish(take),
        }
    }
}

/// All vertices that run, and the figures of those that have finished.
pub struct Vertices {
    clock: Clock,
    running: HashMap<VertexId, Vertex>,
    started: u32,
    pub summary: Summary,
}

impl Vertices {
    pub fn new(clock: Clock) -> Self {
        Vertices { clock, running: HashMap::new(), started: 0, summary: Summary::default() }
    }

    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    pub fn start(&mut self, id: VertexId, kind: VertexKind, name: &str) -> &Vertex {
        self.started += 1;
        let vertex = Vertex {
            number: self.started,
            name: shortened(message(name), NAME_CHARACTERS_MAX),
            started: self.clock.now(),
            kind,
            stdout: LineCutter::default(),
            stderr: LineCutter::default(),
        };
        self.running.insert(id, vertex);
        &self.running[&id]
    }

    pub fn get(&mut self, id: VertexId) -> Option<&mut Vertex> {
        self.running.get_mut(&id)
    }

    /// Takes a vertex out and counts it.
    pub fn finish(&mut self, id: VertexId, result: &VertexResult) -> Option<(Vertex, Duration)> {
        let vertex = self.running.remove(&id)?;
        let took = self.clock.now().saturating_sub(vertex.started);
        self.summary.count(&vertex, took, result);
        Some((vertex, took))
    }
}

/// The figures of a build.
#[derive(Default)]
pub struct Summary {
    pub result: Option<(Digest, u64)>,
    pub steps: u32,
    pub cached: u32,
    steps_time: Duration,
    pulls_time: Duration,
    exports_time: Duration,
    pushes_time: Duration,
    slowest: Option<(String, Duration)>,
}

impl Summary {
    fn count(&mut self, vertex: &Vertex, took: Duration, result: &VertexResult) {
        let total = match vertex.kind {
            VertexKind::Step => &mut self.steps_time,
            VertexKind::Pull => &mut self.pulls_time,
            VertexKind::Export => &mut self.exports_time,
            VertexKind::Push => &mut self.pushes_time,
            VertexKind::Internal => return,
        };
        *total += took;
        if vertex.kind != VertexKind::Step {
            return;
        }
        self.steps += 1;
        self.cached += u32::from(matches!(result, VertexResult::Cached { .. }));
        if self.slowest.as_ref().is_none_or(|(_, slowest)| took > *slowest) {
            self.slowest = Some((vertex.name.clone(), took));
        }
    }

    /// What is shown at the end of a build that worked: digest, size, steps and times, a line each.
    pub fn lines(&self, total: Duration) -> Vec<String> {
        let Some((digest, bytes)) = &self.result else { return Vec::new() };
        let mut lines = vec![
            format!("digest   {digest}"),
            format!("size     {}", style::bytes(*bytes)),
            format!("steps    {}, {} of them cached", self.steps, self.cached),
            format!("time     {}{}", style::duration(total), self.parts()),
        ];
        if let Some((name, took)) = self.slowest.as_ref().filter(|_| self.steps > self.cached) {
            lines.push(format!(
                "slowest  {} {}",
                style::duration(*took),
                shortened(name.clone(), 100)
            ));
        }
        lines
    }

    fn parts(&self) -> String {
        let parts = [
            ("steps", self.steps_time),
            ("pulls", self.pulls_time),
            ("exports", self.exports_time),
            ("pushes", self.pushes_time),
        ];
        let parts = parts.iter().filter(|(_, time)| time.as_millis() >= 50);
        let parts: Vec<_> =
            parts.map(|(name, time)| format!("{name} {}", style::duration(*time))).collect();
        if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
    }
}
