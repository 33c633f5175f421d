use super::*;

fn in_time<T>(work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    assert!(start.elapsed().as_secs() < 60, "took {:?}", start.elapsed());
    result
}

#[test]
fn sizes_have_limits() {
    let huge = vec![b'\n'; limits::DOCKERFILE_BYTES_MAX + 1];
    assert!(first_error(&huge).1.contains("bytes"));
    assert!(
        in_time(|| first_error("FROM x\n".repeat(limits::STAGES_MAX + 1))).1.contains("stages")
    );
    assert!(in_time(|| first_error("FROM x\n".repeat(1_000_000))).1.contains("instructions"));
    assert!(
        in_time(|| first_error(format!("FROM x\nRUN a{}", " \\\nb".repeat(1_000_000))))
            .1
            .contains("one instruction")
    );
    assert!(
        in_time(|| first_error(format!(
            "FROM x\n{}",
            format!("EXPOSE{}\n", " 1".repeat(30_000)).repeat(50)
        )))
        .1
        .contains("arguments")
    );
}

#[test]
fn time_is_linear() {
    let line = "RUN a \\\n".repeat(100_000);
    assert!(in_time(|| parse("Dockerfile", format!("FROM x\n{line}").as_bytes())).is_ok());
    let bodies = format!("FROM x\nRUN{}\n", " <<E".repeat(10_000)) + &"E\n".repeat(10_000);
    assert!(in_time(|| parse("Dockerfile", bodies.as_bytes())).is_ok());
    let unterminated = format!("FROM x\n{}", "RUN a\0 <<E\n".repeat(200_000));
    assert_eq!(in_time(|| errors(unterminated)).len(), limits::ERRORS_MAX);
    let unknown = format!("FROM x\n{}", "X <<E\n".repeat(50_000));
    assert_eq!(in_time(|| errors(unknown)).len(), limits::ERRORS_MAX);
}
