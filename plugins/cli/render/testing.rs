//! A clock that is set by hand, a sink that is read, and events.

use std::{
    io::{self, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bareboat_core::{
    digest::Digest,
    event::{Event, OutputStream, VertexId, VertexKind, VertexResult, Warning},
};

use super::{Display, Sink, vertices::Clock};

#[derive(Clone, Default)]
pub struct TestClock(Arc<AtomicU64>);

impl TestClock {
    pub fn advance(&self, milliseconds: u64) {
        self.0.fetch_add(milliseconds, Ordering::Relaxed);
    }

    pub fn clock(&self) -> Clock {
        let time = self.0.clone();
        Clock::of(move || Duration::from_millis(time.load(Ordering::Relaxed)))
    }
}

#[derive(Clone, Default)]
pub struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn sink() -> (Sink, Written) {
    let written = Written::default();
    (Box::new(written.clone()), written)
}

pub fn begun(id: u32, kind: VertexKind, name: &str, line: Option<u32>) -> Event {
    Event::VertexStarted { id: VertexId(id), kind, name: name.into(), line }
}

pub fn started(id: u32, name: &str) -> Event {
    begun(id, VertexKind::Step, name, Some(1))
}

pub fn output(id: u32, bytes: &[u8]) -> Event {
    Event::VertexOutput { id: VertexId(id), stream: OutputStream::Stdout, bytes: bytes.into() }
}

pub fn progress(id: u32, what: &str, done: u64, total: u64) -> Event {
    Event::VertexProgress { id: VertexId(id), what: what.into(), done, total }
}

pub fn finished(id: u32, result: VertexResult) -> Event {
    Event::VertexFinished { id: VertexId(id), result }
}

pub fn done(id: u32) -> Event {
    finished(id, VertexResult::Done { layer: None })
}

/// A small build with one of everything.
pub fn tell_a_build(display: &dyn Display, clock: &TestClock) {
    display.report(begun(10, VertexKind::Internal, "[internal] load Dockerfile", None));
    clock.advance(100);
    display.report(done(10));
    display.report(begun(11, VertexKind::Step, "[build 1/2] FROM base", Some(1)));
    display.report(finished(11, VertexResult::Cached { layer: None }));
    display.report(begun(12, VertexKind::Step, "[build 2/2] RUN make", Some(2)));
    clock.advance(250);
    display.report(output(12, b"hello\nwor"));
    display.report(output(12, b"ld\ntail"));
    clock.advance(250);
    display.report(finished(12, VertexResult::Done { layer: Some((Digest::of(b"layer"), 5)) }));
    display.report(begun(13, VertexKind::Push, "push localhost:5000/x", None));
    display.report(progress(13, "layer ab", 10, 10_000_000));
    display.report(progress(13, "layer ab", 10_000_000, 10_000_000));
    display.report(done(13));
    display.report(Event::Warning(Warning {
        message: "odd".into(),
        location: Some(("Dockerfile".into(), 3)),
        hint: Some("even it".into()),
    }));
    display.report(Event::Result { digest: Digest::of(b"x"), bytes: 1_234_567 });
    display.close();
}
