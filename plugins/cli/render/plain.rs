//! Plain lines, each prefixed with its vertex: `#7 [build 2/4] RUN make`, `#7 0.312 text`, `#7 DONE 1.2s`.
//!
//! The prefix also keeps a step's output from speaking to the CI runner that shows this log: no line begins with `::`
//! or `section_start:`.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use bareboat_core::event::{Event, OutputStream, Reporter, VertexId, VertexResult, Warning};

use super::{
    Display, Sink, error, lock, put,
    style::{self, Style},
    text::{Colors, message, printable},
    vertices::{Clock, Vertex, Vertices},
};

/// A transfer tells how far it is at most this often.
const TRANSFER_EVERY: Duration = Duration::from_secs(5);

pub struct Plain(Mutex<State>);

struct State {
    out: Sink,
    style: Style,
    vertices: Vertices,
    /// When each running transfer was last shown.
    transfers: HashMap<(VertexId, String), Duration>,
}

impl Plain {
    pub fn new(out: Sink, clock: Clock, style: Style) -> Self {
        let vertices = Vertices::new(clock);
        Plain(Mutex::new(State { out, style, vertices, transfers: HashMap::new() }))
    }
}

impl Reporter for Plain {
    fn report(&self, event: Event) {
        lock(&self.0).show(event);
    }
}

impl Display for Plain {
    fn close(&self) {
        let state = &mut *lock(&self.0);
        for line in state.vertices.summary.lines(state.vertices.now()) {
            put(&mut state.out, &format!("{line}\n"));
        }
    }

    fn error(&self, error: &anyhow::Error) {
        let state = &mut *lock(&self.0);
        put(&mut state.out, &error::render(error, state.style));
    }

    fn log(&self, line: &[u8]) {
        put(&mut lock(&self.0).out, &String::from_utf8_lossy(line));
    }
}

impl State {
    fn show(&mut self, event: Event) {
        match event {
            Event::VertexStarted { id, kind, name, .. } => {
                let vertex = self.vertices.start(id, kind, &name);
                let line = format!("#{} {}\n", vertex.number, self.style.bold(&vertex.name));
                put(&mut self.out, &line);
            }
            Event::VertexOutput { id, stream, bytes } => {
                self.output(id, |vertex, take| vertex.output(stream, &bytes, take));
            }
            Event::VertexProgress { id, what, done, total } => self.transfer(id, what, done, total),
            Event::VertexFinished { id, result } => self.finish(id, &result),
            Event::Warning(warning) => put(&mut self.out, &warning_text(&warning, self.style)),
            Event::Result { digest, bytes } => self.vertices.summary.result = Some((digest, bytes)),
        }
    }

    /// Puts the lines that `cut` finds in a vertex, each with number and time.
    fn output(&mut self, id: VertexId, cut: impl FnOnce(&mut Vertex, &mut dyn FnMut(&[u8]))) {
        let now = self.vertices.now();
        let colors = if self.style.colored { Colors::Keep } else { Colors::Drop };
        let Some(vertex) = self.vertices.get(id) else { return };
        let seconds = now.saturating_sub(vertex.started).as_secs_f64();
        let prefix = format!("#{} {seconds:.3} ", vertex.number);
        let mut text = String::new();
        cut(vertex, &mut |line| {
            text.push_str(&prefix);
            text.push_str(&printable(line, colors));
            text.push('\n');
            // A step may print more than memory holds before the next event.
            if text.len() > 1 << 16 {
                put(&mut self.out, &text);
                text.clear();
            }
        });
        put(&mut self.out, &text);
    }

    fn transfer(&mut self, id: VertexId, what: String, done: u64, total: u64) {
        let now = self.vertices.now();
        let Some(vertex) = self.vertices.get(id) else { return };
        let number = vertex.number;
        let key = (id, what);
        let complete = total > 0 && done >= total;
        let last = self.transfers.entry(key.clone()).or_insert(now);
        if !complete && now.saturating_sub(*last) < TRANSFER_EVERY {
            return;
        }
        *last = now;
        if complete {
            self.transfers.remove(&key);
        }
        let far = if total > 0 { format!(" / {}", style::bytes(total)) } else { String::new() };
        let line = format!("#{number} {} {}{far}\n", message(&key.1), style::bytes(done));
        put(&mut self.out, &line);
    }

    fn finish(&mut self, id: VertexId, result: &VertexResult) {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            self.output(id, |vertex, take| vertex.finish(stream, take));
        }
        self.transfers.retain(|(vertex, _), _| *vertex != id);
        let Some((vertex, took)) = self.vertices.finish(id, result) else { return };
        let what = match result {
            VertexResult::Done { .. } => format!("DONE {}", style::duration(took)),
            VertexResult::Cached { .. } => self.style.good("CACHED"),
            VertexResult::Failed { message: text } => {
                self.style.error(&format!("ERROR: {}", message(text)))
            }
            VertexResult::Canceled => "CANCELED".to_owned(),
        };
        put(&mut self.out, &format!("#{} {what}\n", vertex.number));
    }
}

/// `warning: Dockerfile:3: …` and a hint.
pub fn warning_text(warning: &Warning, style: Style) -> String {
    let place = warning.location.as_ref().map(|(file, line)| format!("{}:{line}: ", message(file)));
    let mut text = format!(
        "{} {}{}\n",
        style.warning("warning:"),
        place.unwrap_or_default(),
        message(&warning.message)
    );
    if let Some(hint) = &warning.hint {
        text += &format!("   hint: {}\n", message(hint));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};

    fn shown(colored: bool, tell: impl FnOnce(&dyn Display, &TestClock)) -> String {
        let (sink, written) = sink();
        let clock = TestClock::default();
        let plain = Plain::new(sink, clock.clock(), Style { colored });
        tell(&plain, &clock);
        written.text()
    }

    #[test]
    fn a_build_reads_like_this() {
        let text = shown(false, tell_a_build);
        assert_eq!(
            text,
            "\
#1 [internal] load Dockerfile
#1 DONE 0.1s
#2 [build 1/2] FROM base
#2 CACHED
#3 [build 2/2] RUN make
#3 0.250 hello
#3 0.250 world
#3 0.500 tail
#3 DONE 0.5s
#4 push localhost:5000/x
#4 layer ab 10.0 MB / 10.0 MB
#4 DONE 0.0s
warning: Dockerfile:3: odd
   hint: even it
digest   sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881
size     1.2 MB
steps    2, 1 of them cached
time     0.6s (steps 0.5s)
slowest  0.5s [build 2/2] RUN make
"
        );
    }

    #[test]
    fn output_cannot_speak_to_the_runner() {
        let text = shown(false, |plain, _| {
            plain.report(started(1, "RUN x"));
            plain.report(output(
                1,
                b"::add-mask::x\nsection_start:1:a\r\x1b[0Kname\n##[group]x\n\x1b[2J::error::x\n",
            ));
            plain.report(finished(1, VertexResult::Failed { message: "a\n::error::b".into() }));
        });
        for line in text.lines() {
            assert!(line.starts_with("#1 "), "{line}");
            assert!(!line.contains("##[") && !line.contains('\u{1b}'), "{line}");
        }
    }

    #[test]
    fn transfers_are_not_a_flood() {
        let text = shown(false, |plain, clock| {
            plain.report(started(1, "pull"));
            for tick in 0..1000 {
                clock.advance(10);
                plain.report(progress(1, "layer", tick, 0));
            }
        });
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn colors_are_kept_only_where_they_are_wanted() {
        let tell = |plain: &dyn Display, _: &TestClock| {
            plain.report(started(1, "RUN x"));
            plain.report(output(1, b"\x1b[31mred\n"));
        };
        assert!(shown(true, tell).contains("\u{1b}[31mred\u{1b}[0m"));
        assert!(!shown(false, tell).contains('\u{1b}'));
    }

    #[test]
    fn events_of_unknown_vertices_are_dropped() {
        let text = shown(false, |plain, _| {
            plain.report(output(9, b"x\n"));
            plain.report(progress(9, "x", 1, 1));
            plain.report(finished(9, VertexResult::Canceled));
        });
        assert_eq!(text, "");
    }
}
