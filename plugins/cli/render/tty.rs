//! The live list: what has finished scrolls up, what runs stays below with its last lines of output and its transfers.
//!
//! indicatif draws the live part. Everything that scrolls is written while the bars are suspended, and nothing is
//! reported from inside a suspension.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Mutex,
    time::Duration,
};

use bareboat_core::event::{Event, Reporter, VertexId, VertexResult};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    Display, Sink, error, lock,
    plain::warning_text,
    put,
    style::{self, Style},
    text::{Colors, message, printable, shortened},
    vertices::{Clock, Vertices},
};

/// Lines of output shown below a running step.
const TAIL_LINES: usize = 4;
/// Transfers shown below a running vertex; further ones show when these have finished.
const TRANSFERS_MAX: usize = 6;
/// Characters of an output line that are kept; the terminal's width cuts further.
const TAIL_CHARACTERS_MAX: usize = 500;
const TICK: Duration = Duration::from_millis(100);

pub struct Tty(Mutex<State>);

struct State {
    bars: MultiProgress,
    out: Sink,
    style: Style,
    looks: Looks,
    vertices: Vertices,
    live: HashMap<VertexId, Live>,
}

/// What shows one running vertex.
struct Live {
    head: ProgressBar,
    tail: VecDeque<String>,
    tail_bars: Vec<ProgressBar>,
    transfers: BTreeMap<String, ProgressBar>,
}

/// The bars' templates.
struct Looks {
    head: ProgressStyle,
    tail: ProgressStyle,
    sized: ProgressStyle,
    unsized_: ProgressStyle,
}

impl Looks {
    fn new(style: Style) -> Self {
        let look = |colored: &str, bare: &str| {
            let template = if style.colored { colored } else { bare };
            ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_spinner())
        };
        Looks {
            head: look(
                "{spinner:.cyan} {wide_msg} {elapsed:.dim}",
                "{spinner} {wide_msg} {elapsed}",
            ),
            tail: look("  {wide_msg:.dim}", "  {wide_msg}"),
            sized: look(
                "  {msg:30} {bar:24.cyan} {decimal_bytes:>9} / {decimal_total_bytes}",
                "  {msg:30} {bar:24} {decimal_bytes:>9} / {decimal_total_bytes}",
            )
            .progress_chars("━╸─"),
            unsized_: look("  {msg:30} {decimal_bytes:>9}", "  {msg:30} {decimal_bytes:>9}"),
        }
    }
}

/// Where the live list is drawn by default.
pub fn standard_error() -> ProgressDrawTarget {
    ProgressDrawTarget::stderr_with_hz(15)
}

impl Tty {
    pub fn new(target: ProgressDrawTarget, out: Sink, style: Style) -> Self {
        Tty(Mutex::new(State {
            bars: MultiProgress::with_draw_target(target),
            out,
            style,
            looks: Looks::new(style),
            vertices: Vertices::new(Clock::start()),
            live: HashMap::new(),
        }))
    }
}

impl Reporter for Tty {
    fn report(&self, event: Event) {
        lock(&self.0).show(event);
    }
}

impl Display for Tty {
    fn close(&self) {
        let state = &mut *lock(&self.0);
        let left: Vec<_> = state.live.drain().collect();
        for (_, live) in left {
            state.remove(live);
        }
        for line in state.vertices.summary.lines(state.vertices.now()) {
            let (name, value) = line.split_once(' ').unwrap_or((&line, ""));
            state.scroll(&format!("{} {value}\n", state.style.bold(name)));
        }
    }

    fn error(&self, error: &anyhow::Error) {
        let state = &mut *lock(&self.0);
        state.scroll(&error::render(error, state.style));
    }

    fn log(&self, line: &[u8]) {
        lock(&self.0).scroll(&String::from_utf8_lossy(line));
    }
}

impl State {
    /// Writes above the live part.
    fn scroll(&mut self, text: &str) {
        let out = &mut self.out;
        self.bars.suspend(|| put(out, text));
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::VertexStarted { id, kind, name, .. } => {
                let name = self.vertices.start(id, kind, &name).name.clone();
                self.start(id, name);
            }
            Event::VertexOutput { id, stream, bytes } => {
                let Some(vertex) = self.vertices.get(id) else { return };
                let Some(live) = self.live.get_mut(&id) else { return };
                vertex.output(stream, &bytes, |line| live.keep(line));
                live.show_tail(&self.bars, &self.looks);
            }
            Event::VertexProgress { id, what, done, total } => {
                let Some(live) = self.live.get_mut(&id) else { return };
                live.transfer(&what, done, total, &self.bars, &self.looks);
            }
            Event::VertexFinished { id, result } => self.finish(id, &result),
            Event::Warning(warning) => self.scroll(&warning_text(&warning, self.style)),
            Event::Result { digest, bytes } => self.vertices.summary.result = Some((digest, bytes)),
        }
    }

    fn start(&mut self, id: VertexId, name: String) {
        let head = self.bars.add(ProgressBar::new_spinner().with_style(self.looks.head.clone()));
        head.set_message(name);
        head.enable_steady_tick(TICK);
        let live =
            Live { head, tail: VecDeque::new(), tail_bars: Vec::new(), transfers: BTreeMap::new() };
        if let Some(former) = self.live.insert(id, live) {
            self.remove(former);
        }
    }

    fn finish(&mut self, id: VertexId, result: &VertexResult) {
        if let Some(live) = self.live.remove(&id) {
            self.remove(live);
        }
        let Some((vertex, took)) = self.vertices.finish(id, result) else { return };
        let (mark, what) = match result {
            VertexResult::Done { .. } => (self.style.good("✓"), style::duration(took)),
            VertexResult::Cached { .. } => (self.style.good("✓"), "CACHED".to_owned()),
            VertexResult::Failed { message: text } => {
                (self.style.error("✗"), self.style.error(&format!("ERROR: {}", message(text))))
            }
            VertexResult::Canceled => (self.style.dim("-"), "CANCELED".to_owned()),
        };
        let line = format!("{mark} {} {}\n", shortened(vertex.name, 200), self.style.dim(&what));
        self.scroll(&line);
    }

    fn remove(&self, live: Live) {
        for bar in live.tail_bars.into_iter().chain(live.transfers.into_values()).chain([live.head])
        {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
    }
}

impl Live {
    fn keep(&mut self, line: &[u8]) {
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        let line = printable(line, Colors::Drop).replace('\t', "    ");
        self.tail.push_back(shortened(line, TAIL_CHARACTERS_MAX));
    }

    fn last_bar(&self) -> &ProgressBar {
        let transfer = self.transfers.values().last();
        self.tail_bars.last().or(transfer).unwrap_or(&self.head)
    }

    fn show_tail(&mut self, bars: &MultiProgress, looks: &Looks) {
        while self.tail_bars.len() < self.tail.len() {
            let bar = ProgressBar::new_spinner().with_style(looks.tail.clone());
            self.tail_bars.push(bars.insert_after(self.last_bar(), bar));
        }
        for (bar, line) in self.tail_bars.iter().zip(&self.tail) {
            bar.set_message(line.clone());
        }
    }

    fn transfer(&mut self, what: &str, done: u64, total: u64, bars: &MultiProgress, looks: &Looks) {
        if total > 0 && done >= total {
            if let Some(bar) = self.transfers.remove(what) {
                bar.finish_and_clear();
                bars.remove(&bar);
            }
            return;
        }
        if !self.transfers.contains_key(what) {
            if self.transfers.len() == TRANSFERS_MAX {
                return;
            }
            let bar = bars.insert_after(self.last_bar(), new_transfer(what, total, looks));
            self.transfers.insert(what.to_owned(), bar);
        }
        self.transfers[what].set_position(done);
    }
}

fn new_transfer(what: &str, total: u64, looks: &Looks) -> ProgressBar {
    let bar = match total {
        0 => ProgressBar::no_length().with_style(looks.unsized_.clone()),
        _ => ProgressBar::new(total).with_style(looks.sized.clone()),
    };
    bar.with_message(shortened(message(what), 30))
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use bareboat_core::event::VertexKind;
    use indicatif::TermLike;

    use super::{super::testing::*, *};

    /// A terminal that remembers what was ever drawn on it.
    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl Screen {
        fn write(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write(text).and_then(|()| self.write("\n"))
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.write(text)
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn shown(tell: impl FnOnce(&Tty)) -> (String, String) {
        let (sink, written) = sink();
        let screen = Screen::default();
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(screen.clone()), 255);
        tell(&Tty::new(target, sink, Style { colored: false }));
        let drawn = screen.0.lock().unwrap().clone();
        (written.text(), drawn)
    }

    #[test]
    fn finished_steps_scroll_and_the_summary_ends() {
        let (scrolled, _) = shown(|tty| tell_a_build(tty, &TestClock::default()));
        let lines: Vec<_> = scrolled.lines().collect();
        assert!(lines[0].starts_with("✓ [internal] load Dockerfile 0."), "{scrolled}");
        assert_eq!(lines[1], "✓ [build 1/2] FROM base CACHED");
        assert!(lines[2].starts_with("✓ [build 2/2] RUN make 0."), "{scrolled}");
        assert!(scrolled.contains("warning: Dockerfile:3: odd"));
        assert!(scrolled.contains("steps    2, 1 of them cached"), "{scrolled}");
        assert!(!scrolled.contains('\u{1b}'));
    }

    #[test]
    fn a_running_step_shows_its_last_lines() {
        let (_, drawn) = shown(|tty| {
            tty.report(started(1, "RUN make"));
            for n in 0..200 {
                tty.report(output(1, format!("line {n}\n").as_bytes()));
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(250));
            tty.report(done(1));
        });
        assert!(drawn.contains("RUN make") && drawn.contains("line 199"), "{drawn}");
    }

    #[test]
    fn transfers_show_bars() {
        let (_, drawn) = shown(|tty| {
            tty.report(begun(1, VertexKind::Pull, "pull base", None));
            tty.report(progress(1, "layer ab", 5_000_000, 10_000_000));
            tty.report(progress(1, "layer cd", 5_000_000, 0));
            std::thread::sleep(Duration::from_millis(250));
            tty.report(progress(1, "layer ab", 10_000_000, 10_000_000));
            tty.report(done(1));
        });
        assert!(drawn.contains("layer ab") && drawn.contains("10.00 MB"), "{drawn}");
        assert!(drawn.contains("layer cd"), "{drawn}");
    }

    #[test]
    fn output_cannot_leave_its_line() {
        let (scrolled, drawn) = shown(|tty| {
            tty.report(started(1, "RUN x"));
            tty.report(output(1, b"\x1b]0;title\x07\x1b[2Jseen\n"));
            std::thread::sleep(Duration::from_millis(250));
            tty.report(finished(1, VertexResult::Failed { message: "\u{1b}[2Jexit 1".into() }));
        });
        assert!(drawn.contains("seen"), "{drawn}");
        assert!(!drawn.contains("title") && !drawn.contains("\u{1b}[2J"), "{drawn:?}");
        assert!(scrolled.contains("✗ RUN x ERROR: exit 1"), "{scrolled}");
    }

    #[test]
    fn logs_and_errors_pass_while_steps_run() {
        let (scrolled, _) = shown(|tty| {
            tty.report(started(1, "RUN x"));
            tty.log(b"diagnostic\n");
            tty.error(&anyhow::anyhow!("failed"));
            tty.close();
        });
        assert_eq!(scrolled, "diagnostic\nerror: failed\n");
    }
}
