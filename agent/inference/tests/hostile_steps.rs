//! Steps that misbehave in every way that the sandbox leaves open. Each must end its own request or load, with an error that
//! names stage and limit, and nothing else.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use skerry_inference::{
    InferError, LoadError, LoadedBundle, Runtime, StepError, WASMTIME_VERSION, compile_component, host_platform,
};
use skerry_shared::{
    bundle::{Lineage, Manifest, Pipeline, Resource, ResourceKind, Stage, StageKind, StepLimits},
    digest::Digest,
    oip::{Datatype, Tensor, TensorError, TensorMetadata},
    schema::SchemaVersion,
};

const LIMITS: StepLimits = StepLimits {
    memory_bytes: 1 << 20,
    timeout_ms: 50,
};
const FOR_EVER: &str = "(loop $again (br $again))";
/// Grows by a page until there is no more, then goes on as an allocator does: it traps.
const GROW_FOR_EVER: &str =
    "(loop $again (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) (unreachable)";

/// The template with some of its words filled in; the others are empty.
fn wat(words: &[(&str, &str)]) -> String {
    let mut text = include_str!("fixtures/step.wat").to_owned();
    for (word, value) in words.iter().chain(&[("pages", "1")]) {
        text = text.replace(&format!("{{{{{word}}}}}"), value);
    }
    let pieces = text
        .split("{{")
        .map(|piece| piece.split_once("}}").map_or(piece, |(_, rest)| rest));
    pieces.collect()
}

/// A bundle of one step, `hostile`, which gives what it takes another name.
fn load_with(runtime: &Runtime, words: &[(&str, &str)], limits: StepLimits) -> Result<LoadedBundle, LoadError> {
    let wasm = wat::parse_str(wat(words)).unwrap();
    let compiled = compile_component(&wasm, &host_platform()).unwrap();
    let pair = |name: &str| TensorMetadata {
        name: name.to_owned(),
        datatype: Datatype::Fp32,
        shape: vec![2],
    };
    let stage = StageKind::Step {
        component: "step.wasm".parse().unwrap(),
        parameters: BTreeMap::from([("key".to_owned(), "value".to_owned())]),
        limits,
    };
    let manifest = Manifest {
        schema: SchemaVersion::CURRENT,
        model: "hostile".parse().unwrap(),
        version: "1".parse().unwrap(),
        created_at_ms: 0,
        resources: vec![Resource {
            name: "step.cwasm".parse().unwrap(),
            digest: Digest::of(&compiled),
            size_bytes: compiled.len() as u64,
            kind: ResourceKind::CompiledComponent {
                component: "step.wasm".parse().unwrap(),
                platform: host_platform(),
                wasmtime: WASMTIME_VERSION.to_owned(),
            },
        }],
        pipeline: Pipeline {
            inputs: vec![pair("x")],
            outputs: vec![pair("y")],
            stages: vec![Stage {
                name: "hostile".parse().unwrap(),
                kind: stage,
                batch: None,
            }],
            edges: vec![],
        },
        golden: None,
        lineage: Lineage::default(),
    };
    LoadedBundle::load(runtime, &manifest, &mut |_| Ok(compiled.clone()))
}

fn ask(bundle: &LoadedBundle, first: f32) -> Result<Vec<Tensor>, InferError> {
    bundle.infer(vec![Tensor::from_f32("x", vec![2], &[first, 0.0]).unwrap()])
}

fn answers(bundle: &LoadedBundle) {
    let outputs = ask(bundle, 0.0).unwrap();
    assert_eq!(outputs, [Tensor::from_f32("y", vec![2], &[0.0, 0.0]).unwrap()]);
}

/// Asks a bundle with this step to misbehave, twice. Before and after it and its neighbour answer.
fn request_error(words: &[(&str, &str)]) -> InferError {
    let runtime = Runtime::new().unwrap();
    let (neighbour, hostile) = (load_with(&runtime, &[], LIMITS), load_with(&runtime, words, LIMITS));
    let (neighbour, hostile) = (neighbour.unwrap(), hostile.unwrap());
    answers(&hostile);
    let error = ask(&hostile, 1.0).unwrap_err();
    answers(&neighbour);
    answers(&hostile);
    assert_eq!(ask(&hostile, 1.0).unwrap_err().to_string(), error.to_string());
    assert!(error.to_string().contains("`hostile`"), "{error}");
    assert!(error.to_string().len() < 2000, "{error}");
    error
}

/// The same, for what goes wrong inside the step.
fn step_error(words: &[(&str, &str)]) -> StepError {
    match request_error(words) {
        InferError::Step { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

/// Loads a bundle with this step. Before and after its neighbour answers.
fn load_error(words: &[(&str, &str)]) -> StepError {
    let runtime = Runtime::new().unwrap();
    let neighbour = load_with(&runtime, &[], LIMITS).unwrap();
    let error = load_with(&runtime, words, LIMITS).err().unwrap();
    answers(&neighbour);
    match error {
        LoadError::Step { stage, source } if stage.as_str() == "hostile" => {
            assert!(source.to_string().len() < 2000, "{source}");
            source
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn is_timeout(error: &StepError) {
    assert!(matches!(error, StepError::Timeout(50)), "{error:?}");
}

#[track_caller]
fn is_memory(error: &StepError) {
    assert!(
        matches!(error, StepError::Memory(limit) if *limit == LIMITS.memory_bytes),
        "{error:?}"
    );
}

#[track_caller]
fn is_trap(error: &StepError, reason: &str) {
    assert!(
        matches!(error, StepError::Trap(text) if text.contains(reason)),
        "{error:?}"
    );
}

/// `process` gives this change of the answer at 512, whose tensor is at 560.
fn spoilt(change: &str) -> String {
    format!("{change} (return (i32.const 512))")
}

#[test]
fn a_trap_ends_its_request_only() {
    is_trap(&step_error(&[("process", "(unreachable)")]), "unreachable");
    is_trap(
        &step_error(&[("process", "(drop (i32.div_u (i32.const 1) (i32.const 0)))")]),
        "divide by zero",
    );
    is_trap(
        &step_error(&[("process", "(drop (i32.load (i32.const -4)))")]),
        "out of bounds",
    );
}

#[test]
fn an_endless_loop_in_a_request_is_stopped_at_the_time_limit() {
    is_timeout(&step_error(&[("process", FOR_EVER)]));
    // After the answer is out, and while the arguments go in.
    let only_hostile = format!("(if (i32.eq (local.get 0) (i32.const 512)) (then {FOR_EVER}))");
    is_timeout(&step_error(&[
        ("process", "(return (i32.const 512))"),
        ("process-done", &only_hostile),
    ]));
}

#[test]
fn an_endless_loop_in_a_load_is_stopped_at_the_time_limit() {
    is_timeout(&load_error(&[("configure", FOR_EVER)]));
    is_timeout(&load_error(&[("describe", FOR_EVER)]));
    is_timeout(&load_error(&[("realloc", FOR_EVER)]));
    let start = format!("(func $start {FOR_EVER}) (start $start)");
    is_timeout(&load_error(&[("fields", &start)]));
}

#[test]
fn memory_that_grows_without_end_is_refused_at_the_limit() {
    is_memory(&step_error(&[("process", GROW_FOR_EVER)]));
    is_memory(&load_error(&[("configure", GROW_FOR_EVER)]));
    is_memory(&load_error(&[("realloc", GROW_FOR_EVER)]));
}

#[test]
fn more_memory_than_the_limit_at_once_is_refused() {
    let all = "(if (i32.eq (memory.grow (i32.const 16384)) (i32.const -1)) (then unreachable))";
    is_memory(&step_error(&[("process", all)]));
    is_memory(&load_error(&[("pages", "17")]));
    is_memory(&load_error(&[("pages", "65536")]));
}

#[test]
fn several_memories_share_one_limit() {
    is_memory(&load_error(&[("fields", "(memory $second 10) (memory $third 10)")]));
    is_memory(&step_error(&[
        ("fields", "(memory $second 0)"),
        ("process", &GROW_FOR_EVER.replace("memory.grow", "memory.grow $second")),
    ]));
    let many = "(memory 0) ".repeat(4);
    assert!(matches!(load_error(&[("fields", &many)]), StepError::Trap(_)));
}

#[test]
fn a_step_that_leaks_gets_a_new_instance_when_it_is_full() {
    // It copes with the refusal, and answers.
    let leak = "(loop $again (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))";
    // A second time in the same instance there is nothing left to grow.
    let first = "(if (i32.gt_u (memory.size) (i32.const 1)) (then unreachable))";
    let runtime = Runtime::new().unwrap();
    let bundle = load_with(&runtime, &[("process", &format!("{first} {leak}"))], LIMITS).unwrap();
    for _ in 0..3 {
        ask(&bundle, 1.0).unwrap();
    }
}

#[test]
fn tables_and_handles_are_limited() {
    let table = "(table $t 1 funcref)";
    let grow = "(if (i32.eq (table.grow $t (ref.null func) (i32.const 1000000)) (i32.const -1)) (then unreachable))";
    is_trap(&step_error(&[("fields", table), ("process", grow)]), "unreachable");
    assert!(matches!(
        load_error(&[("fields", "(table 1000000 funcref)")]),
        StepError::Trap(_)
    ));
    let handles = step_error(&[
        (
            "resource",
            "(type $own (resource (rep i32))) (core func $new (canon resource.new $own))",
        ),
        (
            "core-imports",
            "(import \"own\" \"new\" (func $new (param i32) (result i32)))",
        ),
        ("core-with", "(with \"own\" (instance (export \"new\" (func $new))))"),
        ("process", "(loop $again (drop (call $new (i32.const 1))) (br $again))"),
    ]);
    is_trap(&handles, "handle limit");
}

#[test]
fn endless_recursion_ends_at_the_stack_limit() {
    let fields = "(func $down (param i32) (result i32) (i32.add (i32.const 1) (call $down (local.get 0))))";
    let error = step_error(&[("fields", fields), ("process", "(drop (call $down (i32.const 0)))")]);
    is_trap(&error, "stack");
}

#[test]
fn tensors_whose_data_does_not_fit_are_refused() {
    let tensor_error = |change: &str| match step_error(&[("process", &spoilt(change))]) {
        StepError::Tensor(error) => error,
        other => panic!("{other:?}"),
    };
    let data_length = tensor_error("(i32.store (i32.const 584) (i32.const 7))");
    assert!(
        matches!(
            data_length,
            TensorError::DataLength {
                got: 7,
                expected: 8,
                ..
            }
        ),
        "{data_length:?}"
    );
    let datatype = tensor_error("(i32.store8 (i32.const 568) (i32.const 11))");
    assert!(
        matches!(datatype, TensorError::DataLength { expected: 16, .. }),
        "{datatype:?}"
    );
    // BYTES whose first length is four thousand million.
    let bytes = "(i32.store8 (i32.const 568) (i32.const 12)) (i32.store (i32.const 580) (i32.const 600))
        (i32.store (i32.const 600) (i32.const -1))";
    assert!(matches!(tensor_error(bytes), TensorError::Elements(_)));
    // The shape [2^63, 2^63].
    let shape = "(i32.store (i32.const 572) (i32.const 600)) (i32.store (i32.const 576) (i32.const 2))
        (i64.store (i32.const 600) (i64.const 0x8000000000000000)) (i64.store (i32.const 608) (i64.const 0x8000000000000000))";
    assert!(matches!(tensor_error(shape), TensorError::Shape(_)));
}

#[test]
fn answers_that_are_no_tensors_are_refused() {
    let trap = |change: &str, reason: &str| is_trap(&step_error(&[("process", &spoilt(change))]), reason);
    trap("(i32.store8 (i32.const 568) (i32.const 13))", "discriminant");
    trap("(i32.store8 (i32.const 512) (i32.const 2))", "discriminant");
    trap("(i32.store (i32.const 580) (i32.const -8))", "out of bounds");
    trap("(i32.store (i32.const 584) (i32.const -1))", "out of bounds");
    trap("(i32.store (i32.const 572) (i32.const 73))", "aligned");
    trap(
        "(i32.store8 (i32.const 66) (i32.const 0xff)) (i32.store (i32.const 560) (i32.const 66))",
        "utf-8",
    );
    is_trap(&step_error(&[("process", "(return (i32.const -4))")]), "out of bounds");
    is_trap(&step_error(&[("process", "(return (i32.const 513))")]), "aligned");
}

#[test]
fn tensors_other_than_described_are_named() {
    let missing = |change: &str| {
        let error = request_error(&[("process", &spoilt(change))]);
        assert_eq!(error.to_string(), "stage `hostile` gave no tensor `y` that fits");
    };
    // None; another name; another datatype of the same size; the shape [1, 2].
    missing("(i32.store (i32.const 520) (i32.const 0))");
    missing("(i32.store (i32.const 560) (i32.const 64))");
    missing("(i32.store8 (i32.const 568) (i32.const 7))");
    missing(
        "(i32.store (i32.const 572) (i32.const 600)) (i32.store (i32.const 576) (i32.const 2))
        (i64.store (i32.const 600) (i64.const 1)) (i64.store (i32.const 608) (i64.const 2))",
    );
    // What it describes is compared with what the manifest promises.
    let runtime = Runtime::new().unwrap();
    let renamed = load_with(
        &runtime,
        &[("describe", "(i32.store (i32.const 128) (i32.const 64))")],
        LIMITS,
    );
    let error = renamed.err().unwrap();
    assert!(matches!(error, LoadError::AbsentTensor { .. }), "{error}");
}

#[test]
fn an_error_of_megabytes_is_cut() {
    // Half a megabyte of `A`, in each kind of error.
    let fill = "(drop (memory.grow (i32.const 8))) (memory.fill (i32.const 65536) (i32.const 65) (i32.const 524288))";
    for kind in 0..3 {
        let answer = format!(
            "{fill} (i32.store (i32.const 512) (i32.const 1)) (i32.store (i32.const 516) (i32.const {kind}))
            (i32.store (i32.const 520) (i32.const 65536)) (i32.store (i32.const 524) (i32.const 524288))"
        );
        let text = match (kind, step_error(&[("process", &spoilt(&answer))])) {
            (0, StepError::Parameter(text)) | (1, StepError::Input(text)) | (2, StepError::Failed(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(
            text.starts_with("AAAA") && text.ends_with('…') && text.len() < 1100,
            "{text}"
        );
    }
}

#[test]
fn an_answer_that_repeats_the_same_bytes_is_refused() {
    // Four tensors, each of which is all of the memory but the first page.
    let one = |at: u32| {
        format!(
            "(memory.copy (i32.const {at}) (i32.const 304) (i32.const 28))
            (i32.store offset=20 (i32.const {at}) (i32.const 65536)) (i32.store offset=24 (i32.const {at}) (i32.const 524288))"
        )
    };
    let tensors: String = (0..4).map(|position| one(600 + 28 * position)).collect();
    let answer = format!(
        "(drop (memory.grow (i32.const 8))) {tensors}
        (i32.store (i32.const 516) (i32.const 600)) (i32.store (i32.const 520) (i32.const 4))"
    );
    let error = step_error(&[("process", &spoilt(&answer))]);
    assert!(
        matches!(error, StepError::Answer(limit) if limit == LIMITS.memory_bytes),
        "{error:?}"
    );
}

#[test]
fn names_dimensions_and_tensors_are_counted() {
    // There are zeros from 2048 on: names of NULs, tensors of nothing.
    let too_many = |change: &str, expected: &str| {
        let error = step_error(&[("process", &spoilt(change))]);
        assert!(
            matches!(error, StepError::TooMany { what, .. } if what == expected),
            "{error:?}"
        );
    };
    too_many(
        "(i32.store (i32.const 560) (i32.const 2048)) (i32.store (i32.const 564) (i32.const 129))",
        "bytes of a tensor's name",
    );
    too_many("(i32.store (i32.const 576) (i32.const 17))", "dimensions of a tensor");
    too_many(
        "(i32.store (i32.const 516) (i32.const 2048)) (i32.store (i32.const 520) (i32.const 65))",
        "tensors",
    );
    let described = |change: &str, expected: &str| {
        let error = load_error(&[("describe", change)]);
        assert!(
            matches!(error, StepError::TooMany { what, .. } if what == expected),
            "{error:?}"
        );
    };
    described(
        "(i32.store (i32.const 128) (i32.const 2048)) (i32.store (i32.const 132) (i32.const 129))",
        "bytes of a tensor's name",
    );
    described("(i32.store (i32.const 112) (i32.const 17))", "dimensions of a tensor");
    described(
        "(i32.store (i32.const 160) (i32.const 2048)) (i32.store (i32.const 164) (i32.const 65))",
        "tensors",
    );
}

#[test]
fn a_step_that_imports_more_than_the_types_does_not_load() {
    for import in [
        "(import \"wasi:cli/environment@0.2.0\" (instance (export \"get-arguments\" (func (result (list string))))))",
        "(import \"host-function\" (func))",
    ] {
        let error = load_error(&[("imports", import)]);
        assert!(
            matches!(&error, StepError::Instantiate(text) if text.contains("wasi") || text.contains("host-function")),
            "{error:?}"
        );
    }
}

#[test]
fn a_manifest_cannot_give_more_than_a_device_allows() {
    let generous = StepLimits {
        memory_bytes: u64::MAX,
        timeout_ms: 10_000,
    };
    let runtime = Runtime::new().unwrap();
    // 1 GiB at once.
    let all = "(if (i32.eq (memory.grow (i32.const 16384)) (i32.const -1)) (then unreachable))";
    let bundle = load_with(&runtime, &[("process", all)], generous).unwrap();
    let error = ask(&bundle, 1.0).unwrap_err().to_string();
    assert_eq!(
        error,
        "step `hostile`: the step wanted more memory than its limit of 268435456 bytes"
    );
    answers(&bundle);
}
