//! One JSON object a line, documented in docs/progress-json.md. A change of a field's meaning changes `v`.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use bareboat_core::{
    Error,
    event::{Event, OutputStream, Reporter, VertexId, VertexKind, VertexResult, Warning},
};
use serde::Serialize;

use super::{
    Display, Sink, lock, put,
    vertices::{Clock, Vertex, Vertices},
};

const VERSION: u8 = 1;

/// A transfer tells how far it is at most this often.
const TRANSFER_EVERY: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct Line<'a> {
    v: u8,
    #[serde(flatten)]
    body: Body<'a>,
    /// Seconds since the build began.
    time: f64,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Body<'a> {
    Start {
        id: u32,
        kind: &'a str,
        name: &'a str,
        line: Option<u32>,
    },
    Output {
        id: u32,
        stream: &'a str,
        text: &'a str,
    },
    Progress {
        id: u32,
        what: &'a str,
        done: u64,
        total: Option<u64>,
    },
    Finish {
        id: u32,
        result: &'a str,
        seconds: f64,
        layer: Option<Layer>,
        message: Option<&'a str>,
    },
    Warning {
        message: &'a str,
        file: Option<&'a str>,
        line: Option<u32>,
        hint: Option<&'a str>,
    },
    Result {
        digest: String,
        bytes: u64,
    },
    Error(ErrorBody<'a>),
    Log {
        text: &'a str,
    },
    End {
        ok: bool,
        steps: u32,
        cached: u32,
    },
}

#[derive(Serialize)]
struct Layer {
    digest: String,
    bytes: u64,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    title: String,
    exit_code: u8,
    file: Option<&'a str>,
    line: Option<u32>,
    causes: Vec<String>,
    output: Option<&'a str>,
    hint: Option<&'a str>,
}

pub struct Json(Mutex<State>);

struct State {
    out: Sink,
    vertices: Vertices,
    transfers: HashMap<(VertexId, String), Duration>,
    failed: bool,
}

impl Json {
    pub fn new(out: Sink, clock: Clock) -> Self {
        let vertices = Vertices::new(clock);
        Json(Mutex::new(State { out, vertices, transfers: HashMap::new(), failed: false }))
    }
}

impl Reporter for Json {
    fn report(&self, event: Event) {
        lock(&self.0).show(event);
    }
}

impl Display for Json {
    fn close(&self) {
        let state = &mut *lock(&self.0);
        let summary = &state.vertices.summary;
        let (ok, steps, cached) = (!state.failed, summary.steps, summary.cached);
        state.put(Body::End { ok, steps, cached });
    }

    fn error(&self, error: &anyhow::Error) {
        let state = &mut *lock(&self.0);
        state.failed = true;
        state.put(Body::Error(error_body(error)));
    }

    fn log(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        lock(&self.0).put(Body::Log { text: text.trim_end() });
    }
}

fn error_body(error: &anyhow::Error) -> ErrorBody<'_> {
    let core = error.downcast_ref::<Error>();
    let location = core.and_then(Error::location);
    ErrorBody {
        title: core.map_or_else(|| error.to_string(), |core| core.title().to_owned()),
        exit_code: super::exit_code(error),
        file: location.map(|location| location.file.as_str()),
        line: location.map(|location| location.span.first_line),
        causes: match core {
            Some(core) => core.causes(),
            None => error.chain().skip(1).map(ToString::to_string).collect(),
        },
        output: core.and_then(Error::output),
        hint: core.and_then(Error::hint_text),
    }
}

impl State {
    fn put(&mut self, body: Body<'_>) {
        put_line(&mut self.out, self.vertices.now(), body);
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::VertexStarted { id, kind, name, line } => {
                let word = kind_word(&kind);
                let number = self.vertices.start(id, kind, &name).number;
                self.put(Body::Start { id: number, kind: word, name: &name, line });
            }
            Event::VertexOutput { id, stream, bytes } => {
                self.output(id, stream, |vertex, take| vertex.output(stream, &bytes, take));
            }
            Event::VertexProgress { id, what, done, total } => self.transfer(id, what, done, total),
            Event::VertexFinished { id, result } => self.finish(id, &result),
            Event::Warning(warning) => self.warning(&warning),
            Event::Result { digest, bytes } => {
                self.vertices.summary.result = Some((digest, bytes));
                self.put(Body::Result { digest: digest.to_string(), bytes });
            }
        }
    }

    fn output(
        &mut self,
        id: VertexId,
        stream: OutputStream,
        cut: impl FnOnce(&mut Vertex, &mut dyn FnMut(&[u8])),
    ) {
        let now = self.vertices.now();
        let Some(vertex) = self.vertices.get(id) else { return };
        let (id, stream) = (vertex.number, stream_word(stream));
        cut(vertex, &mut |line| {
            let text = &String::from_utf8_lossy(line);
            put_line(&mut self.out, now, Body::Output { id, stream, text });
        });
    }

    fn transfer(&mut self, id: VertexId, what: String, done: u64, total: u64) {
        let now = self.vertices.now();
        let Some(number) = self.vertices.get(id).map(|vertex| vertex.number) else { return };
        let complete = total > 0 && done >= total;
        let last = self.transfers.insert((id, what.clone()), now);
        if let Some(last) =
            last.filter(|last| !complete && now.saturating_sub(*last) < TRANSFER_EVERY)
        {
            self.transfers.insert((id, what), last);
            return;
        }
        let total = (total > 0).then_some(total);
        self.put(Body::Progress { id: number, what: &what, done, total });
    }

    fn finish(&mut self, id: VertexId, result: &VertexResult) {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            self.output(id, stream, |vertex, take| vertex.finish(stream, take));
        }
        self.transfers.retain(|(vertex, _), _| *vertex != id);
        let Some((vertex, took)) = self.vertices.finish(id, result) else { return };
        let (word, layer, message) = match result {
            VertexResult::Done { layer } => ("done", *layer, None),
            VertexResult::Cached { layer } => ("cached", *layer, None),
            VertexResult::Failed { message } => ("failed", None, Some(message.as_str())),
            VertexResult::Canceled => ("canceled", None, None),
        };
        let layer = layer.map(|(digest, bytes)| Layer { digest: digest.to_string(), bytes });
        let seconds = rounded(took);
        self.put(Body::Finish { id: vertex.number, result: word, seconds, layer, message });
    }

    fn warning(&mut self, warning: &Warning) {
        let (file, line) =
            warning.location.as_ref().map(|(file, line)| (file.as_str(), *line)).unzip();
        self.put(Body::Warning {
            message: &warning.message,
            file,
            line,
            hint: warning.hint.as_deref(),
        });
    }
}

fn put_line(out: &mut Sink, time: Duration, body: Body<'_>) {
    let line = Line { v: VERSION, body, time: rounded(time) };
    let Ok(json) = serde_json::to_string(&line) else { return };
    // `##[name]` inside a string is a command to GitHub's runner; JSON reads the escape as the same text.
    put(out, &(json.replace("##", "\\u0023\\u0023") + "\n"));
}

/// Seconds to the millisecond.
fn rounded(time: Duration) -> f64 {
    time.as_millis() as f64 / 1000.0
}

fn kind_word(kind: &VertexKind) -> &'static str {
    match kind {
        VertexKind::Internal => "internal",
        VertexKind::Step => "step",
        VertexKind::Pull => "pull",
        VertexKind::Export => "export",
        VertexKind::Push => "push",
    }
}

fn stream_word(stream: OutputStream) -> &'static str {
    match stream {
        OutputStream::Stdout => "stdout",
        OutputStream::Stderr => "stderr",
    }
}

#[cfg(test)]
mod tests {
    use bareboat_core::Class;

    use super::{super::testing::*, *};

    fn shown(tell: impl FnOnce(&dyn Display, &TestClock)) -> String {
        let (sink, written) = sink();
        let clock = TestClock::default();
        tell(&Json::new(sink, clock.clock()), &clock);
        written.text()
    }

    #[test]
    fn a_build_reads_as_documented() {
        let layer = bareboat_core::digest::Digest::of(b"layer");
        let digest = bareboat_core::digest::Digest::of(b"x");
        let expected = format!(
            r##"{{"v":1,"type":"start","id":1,"kind":"internal","name":"[internal] load Dockerfile","line":null,"time":0.0}}
{{"v":1,"type":"finish","id":1,"result":"done","seconds":0.1,"layer":null,"message":null,"time":0.1}}
{{"v":1,"type":"start","id":2,"kind":"step","name":"[build 1/2] FROM base","line":1,"time":0.1}}
{{"v":1,"type":"finish","id":2,"result":"cached","seconds":0.0,"layer":null,"message":null,"time":0.1}}
{{"v":1,"type":"start","id":3,"kind":"step","name":"[build 2/2] RUN make","line":2,"time":0.1}}
{{"v":1,"type":"output","id":3,"stream":"stdout","text":"hello","time":0.35}}
{{"v":1,"type":"output","id":3,"stream":"stdout","text":"world","time":0.35}}
{{"v":1,"type":"output","id":3,"stream":"stdout","text":"tail","time":0.6}}
{{"v":1,"type":"finish","id":3,"result":"done","seconds":0.5,"layer":{{"digest":"{layer}","bytes":5}},"message":null,"time":0.6}}
{{"v":1,"type":"start","id":4,"kind":"push","name":"push localhost:5000/x","line":null,"time":0.6}}
{{"v":1,"type":"progress","id":4,"what":"layer ab","done":10,"total":10000000,"time":0.6}}
{{"v":1,"type":"progress","id":4,"what":"layer ab","done":10000000,"total":10000000,"time":0.6}}
{{"v":1,"type":"finish","id":4,"result":"done","seconds":0.0,"layer":null,"message":null,"time":0.6}}
{{"v":1,"type":"warning","message":"odd","file":"Dockerfile","line":3,"hint":"even it","time":0.6}}
{{"v":1,"type":"result","digest":"{digest}","bytes":1234567,"time":0.6}}
{{"v":1,"type":"end","ok":true,"steps":2,"cached":1,"time":0.6}}
"##
        );
        assert_eq!(shown(tell_a_build), expected);
    }

    #[test]
    fn every_line_is_one_object_whatever_a_step_prints() {
        let text = shown(|json, _| {
            json.report(started(1, "RUN \"x\"\n"));
            json.report(output(1, b"\xff\x1b[31m\"}\n::error::x\n##[group]y\n\x00\xe2\x80\xa8z"));
            json.report(finished(1, VertexResult::Failed { message: "a\nb".into() }));
            json.error(&Error::new(Class::Step, "t\nu").hint("h").into());
            json.log(b"a log line\n");
            json.close();
        });
        assert!(!text.contains("##["));
        let values: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(values.iter().all(|value| value["v"] == 1));
        assert_eq!(values[3]["text"], "##[group]y");
        let error = values.iter().find(|value| value["type"] == "error").unwrap();
        assert_eq!((&error["exit_code"], &error["title"]), (&1.into(), &"t\nu".into()));
        assert_eq!(values.last().unwrap()["ok"], false);
    }

    #[test]
    fn transfers_are_told_once_a_second() {
        let text = shown(|json, clock| {
            json.report(started(1, "pull"));
            for tick in 1..=100 {
                clock.advance(100);
                json.report(progress(1, "layer", tick, 100));
            }
        });
        let count = text.matches("\"progress\"").count();
        assert!((10..=12).contains(&count), "{count}");
    }
}
