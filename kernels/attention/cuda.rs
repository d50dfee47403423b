//! Launches of `cuda.cu`, and which tiles of queries and keys meet.

use super::Heads;
use crate::cuda::{Args, Launch, Ptr};

/// Queries or keys of a tile.
pub const TILE: u32 = 64;
/// Head sizes that there are kernels for.
pub const HEAD_SIZES: [usize; 7] = [16, 32, 48, 64, 80, 96, 128];
/// Set on an entry of a list of tiles: every pair of the two tiles is visible.
pub const WHOLE: u32 = 1 << 31;

const THREADS: u32 = 128;

/// One pass's attention. Query i sees key j iff `j <= rows[i] && i < end[j]`; every query sees its own key at least.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How the heads lie in a row; d is one of [`HEAD_SIZES`].
    pub heads: Heads,
    /// Rows of q, o and their gradients.
    pub queries: u32,
    /// Rows of k, v and their gradients.
    pub keys: u32,
    /// Key rows below it have no gradient: those rows of dk and dv are left alone.
    pub cached: u32,
    /// `[queries]` u32: each query's own key row, rising.
    pub rows: Ptr,
    /// `[keys]` u32: the first query past those that may see the key; `queries` for cached ones.
    pub end: Ptr,
    /// [`Tiles::q_first`], u32.
    pub q_first: Ptr,
    /// [`Tiles::q_list`], u32.
    pub q_list: Ptr,
    /// [`Tiles::k_first`], u32.
    pub k_first: Ptr,
    /// [`Tiles::k_list`], u32.
    pub k_list: Ptr,
}

/// Which tiles of [`TILE`] queries and keys hold a visible pair, from both sides. Entries carry [`WHOLE`] where both
/// tiles are full and every pair is visible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// `[query tiles + 1]`: where each query tile's entries begin in `q_list`.
    pub q_first: Vec<u32>,
    /// Key tiles, rising.
    pub q_list: Vec<u32>,
    /// `[key tiles + 1]`: where each key tile's entries begin in `k_list`.
    pub k_first: Vec<u32>,
    /// Query tiles, rising.
    pub k_list: Vec<u32>,
}

/// The tiles of `rows` \[queries\], rising, and `end` \[keys\]; in time linear in both and in the lists.
///
/// Panics where an end is past the queries.
pub fn tiles(rows: &[u32], end: &[u32]) -> Tiles {
    let last = end.iter().max().map_or(0, |end| *end as usize);
    assert!(last <= rows.len(), "attention: a key's end at query {last} of {}", rows.len());
    let (mut k_first, mut k_list, mut low) = (vec![0], Vec::new(), 0);
    for (tile, ends) in (0..).zip(end.chunks(TILE as usize)) {
        meet(&mut k_list, rows, tile * TILE, ends, &mut low);
        k_first.push(k_list.len() as u32);
    }
    let (q_first, q_list) = turned(&k_first, &k_list, rows.len().div_ceil(TILE as usize));
    Tiles { q_first, q_list, k_first, k_list }
}

/// Appends the query tiles that see one of the keys from `first` on. The queries that see a key are consecutive, from
/// `low`, the first whose row is not below the key, which rises with it.
fn meet(list: &mut Vec<u32>, rows: &[u32], first: u32, ends: &[u32], low: &mut u32) {
    let (mut next, mut all) = (0, 0..u32::MAX);
    let begin = list.len();
    for (key, end) in (first..).zip(ends) {
        *low += rows[*low as usize..].iter().take_while(|row| **row < key).count() as u32;
        all = *low..all.end.min(*end);
        if *low < *end {
            list.extend(next.max(*low / TILE)..end.div_ceil(TILE));
            next = next.max(end.div_ceil(TILE));
        }
    }
    let is_whole = |tile: u32| tile * TILE >= all.start && (tile + 1) * TILE <= all.end.min(rows.len() as u32);
    if ends.len() == TILE as usize {
        list[begin..].iter_mut().filter(|tile| is_whole(**tile)).for_each(|tile| *tile |= WHOLE);
    }
}

/// The same pairs from the other side.
fn turned(first: &[u32], list: &[u32], count: usize) -> (Vec<u32>, Vec<u32>) {
    let mut lists = vec![Vec::new(); count];
    for (tile, range) in (0..).zip(first.windows(2)) {
        for entry in &list[range[0] as usize..range[1] as usize] {
            lists[(entry & !WHOLE) as usize].push(tile | (entry & WHOLE));
        }
    }
    let mut turned = vec![0];
    turned.extend(lists.iter().scan(0, |sum, list| {
        *sum += list.len() as u32;
        Some(*sum)
    }));
    (turned, lists.concat())
}

/// The entry of one head size. Panics where there is none.
macro_rules! entry {
    ($name:literal, $dim:expr) => {
        match $dim {
            16 => concat!($name, "_16"),
            32 => concat!($name, "_32"),
            48 => concat!($name, "_48"),
            64 => concat!($name, "_64"),
            80 => concat!($name, "_80"),
            96 => concat!($name, "_96"),
            128 => concat!($name, "_128"),
            dim => panic!("attention: heads of {dim}; there are kernels for {HEAD_SIZES:?}"),
        }
    };
}

/// `struct Shape` of cuda.cu, with the lists of one side.
fn push(args: Args, shape: &Shape, first: Ptr, list: Ptr) -> Args {
    let Heads { q, kv, .. } = shape.heads;
    let args = args.ptr(shape.rows).ptr(shape.end).ptr(first).ptr(list).u32(q as u32).u32(kv as u32);
    args.u32(shape.queries).u32(shape.keys).u32(shape.cached).f32(shape.heads.scale() as f32)
}

/// Shared memory of `tiles` tiles, bytes.
fn shared(tiles: u32, heads: Heads) -> u32 {
    tiles * TILE * heads.dim as u32 * 2
}

/// o \[queries, H d\] bf16 and lse \[queries, H\] f32 of q \[queries, H d\], k and v \[keys, K d\] bf16.
///
/// A value of v that is not finite makes what sees it NaN for the whole head where it lies in a tile that is partly
/// hidden; in the backward passes, one of k, q or d_o.
pub fn forward(o: Ptr, lse: Ptr, q: Ptr, k: Ptr, v: Ptr, shape: &Shape) -> Launch {
    let args = push(Args::new().ptr(o).ptr(lse).ptr(q).ptr(k).ptr(v), shape, shape.q_first, shape.q_list);
    let grid = [shape.queries.div_ceil(TILE), shape.heads.q as u32, 1];
    let entry = entry!("attention_forward", shape.heads.dim);
    Launch { entry, grid, block: [THREADS, 1, 1], shared: shared(5, shape.heads), args }
}

/// delta \[queries, H\] f32 of d_o and o \[queries, H d\] bf16: the sum over each head of d_o o.
pub fn delta(delta: Ptr, d_o: Ptr, o: Ptr, shape: &Shape) -> Launch {
    let rows = shape.queries * shape.heads.q as u32;
    let args = Args::new().ptr(delta).ptr(d_o).ptr(o).u32(rows).u32(shape.heads.dim as u32);
    Launch { entry: "attention_delta", grid: [rows.div_ceil(TILE), 1, 1], block: [THREADS, 1, 1], shared: 0, args }
}

/// dq \[queries, H d\] f32, overwritten; lse and delta \[queries, H\] f32, the others as in [`forward`].
pub fn backward_q(dq: Ptr, d_o: Ptr, q: Ptr, k: Ptr, v: Ptr, lse: Ptr, delta: Ptr, shape: &Shape) -> Launch {
    let args = Args::new().ptr(dq).ptr(d_o).ptr(q).ptr(k).ptr(v).ptr(lse).ptr(delta);
    let args = push(args, shape, shape.q_first, shape.q_list);
    let grid = [shape.queries.div_ceil(TILE), shape.heads.q as u32, 1];
    let entry = entry!("attention_backward_q", shape.heads.dim);
    Launch { entry, grid, block: [THREADS, 1, 1], shared: shared(6, shape.heads), args }
}

/// dk f32 and dv bf16 \[keys, K d\], overwritten from row `cached` on; the others as in [`backward_q`].
pub fn backward_kv(dk: Ptr, dv: Ptr, d_o: Ptr, q: Ptr, k: Ptr, v: Ptr, lse: Ptr, delta: Ptr, shape: &Shape) -> Launch {
    let args = Args::new().ptr(dk).ptr(dv).ptr(d_o).ptr(q).ptr(k).ptr(v).ptr(lse).ptr(delta);
    let args = push(args, shape, shape.k_first, shape.k_list);
    let grid = [shape.keys.div_ceil(TILE) - shape.cached / TILE, shape.heads.kv as u32, 1];
    let entry = entry!("attention_backward_kv", shape.heads.dim);
    Launch { entry, grid, block: [THREADS, 1, 1], shared: shared(6, shape.heads), args }
}

/// Only the heads that small tests have: the rest takes seconds to compile.
#[cfg(test)]
pub(crate) const SMALL: &[&str] = &["HEAD_SIZES=KERNELS(16)"];

#[cfg(test)]
mod tests {
    use super::super::tests::{Case, DIALOGUE, Forest, Results, heads};
    use super::*;
    use crate::cuda::testing::Gpu;
    use crate::proof::wide;
    use crate::testing::{check, same_bits};
    use crate::{Real, bf16};
    use proptest::prelude::*;

    const SOURCE: &str = "attention/cuda.cu";
    const CANARY: f32 = -77.0;

    /// The first query past each key's; 0 for keys of no span.
    fn ends(forest: &Forest) -> Vec<u32> {
        let mut ends = vec![0; forest.key_rows()];
        for (span, (_, keys)) in forest.spans.iter().enumerate() {
            let end = forest.queries(&forest.below(span)).end as u32;
            ends[keys.start as usize..keys.end as usize].fill(end);
        }
        ends
    }

    fn shape(gpu: &mut Gpu, case: &Case<bf16>, cached: usize) -> Shape {
        let (rows, end) = (&case.forest.rows, ends(&case.forest));
        let tiles = tiles(rows, &end);
        Shape {
            heads: case.heads,
            queries: rows.len() as u32,
            keys: end.len() as u32,
            cached: cached as u32,
            rows: gpu.put(rows),
            end: gpu.put(&end),
            q_first: gpu.put(&tiles.q_first),
            q_list: gpu.put(&tiles.q_list),
            k_first: gpu.put(&tiles.k_first),
            k_list: gpu.put(&tiles.k_list),
        }
    }

    /// All passes; backward from `given`'s o and lse.
    fn run(
        gpu: &mut Gpu,
        case: &Case<bf16>,
        cached: usize,
        given: Option<&Results<bf16>>,
    ) -> Result<Results<bf16>, String> {
        let shape = shape(gpu, case, cached);
        let [q, k, v, d_o] = [&case.q, &case.k, &case.v, &case.d_o].map(|x| gpu.put(x));
        let rows = case.forest.rows.len() * case.heads.q;
        let (o, lse, delta_at) = (gpu.room::<bf16>(case.q.len()), gpu.room::<f32>(rows), gpu.room::<f32>(rows));
        gpu.run(&forward(o, lse, q, k, v, &shape))?;
        let (o_given, lse_given) = given.map_or((o, lse), |given| (gpu.put(&given.o), gpu.put(&given.lse)));
        gpu.run(&delta(delta_at, d_o, o_given, &shape))?;
        let (dq, dk) = (gpu.room::<f32>(case.q.len()), gpu.put(&vec![CANARY; case.k.len()]));
        let dv = gpu.put(&vec![bf16::from_f32(CANARY); case.v.len()]);
        gpu.run(&backward_q(dq, d_o, q, k, v, lse_given, delta_at, &shape))?;
        gpu.run(&backward_kv(dk, dv, d_o, q, k, v, lse_given, delta_at, &shape))?;
        Ok(Results { o: gpu.get(o), lse: gpu.get(lse), dq: gpu.get(dq), dk: gpu.get(dk), dv: gpu.get(dv) })
    }

    /// Every result against the reference, from the same o and lse; gradients of cached keys must be as they were.
    fn passes_the_rule(gpu: &mut Gpu, forest: Forest, heads: Heads, cached: usize) -> Result<(), String> {
        let case = Case::<bf16>::new(forest, heads);
        let got = run(gpu, &case, cached, None)?;
        let plain = case.plain(&got);
        let given = Results { o: wide(&got.o), lse: wide(&got.lse), dq: Vec::new(), dk: Vec::new(), dv: Vec::new() };
        let want = case.wide().reference(Some(&given));
        let kept = cached * heads.kv_row();
        let place = |what| move |e| format!("{what} of {heads:?}: {e}");
        check(&got.o, &plain.o, &want.o).map_err(place("o"))?;
        check(&got.lse, &plain.lse, &want.lse).map_err(place("lse"))?;
        check(&got.dq, &plain.dq, &want.dq).map_err(place("dq"))?;
        check(&got.dk[kept..], &plain.dk[kept..], &want.dk[kept..]).map_err(place("dk"))?;
        check(&got.dv[kept..], &plain.dv[kept..], &want.dv[kept..]).map_err(place("dv"))?;
        let untouched =
            got.dk[..kept].iter().all(|x| *x == CANARY) && got.dv[..kept].iter().all(|x| x.to_f32() == CANARY);
        if untouched { Ok(()) } else { Err("a cached key has a gradient".into()) }
    }

    /// A root of one token and one of two beside a line: see the tests of the other forms.
    fn line(len: u32) -> Forest {
        Forest::new(0, &[(None, 1), (None, 2), (None, len)], 1)
    }

    /// The first `cached` rows of a forest without queries.
    fn continued(spans: &[(Option<usize>, u32)], cached: u32) -> Forest {
        let mut forest = Forest::new(0, spans, 1);
        forest.rows.retain(|row| *row >= cached);
        forest
    }

    #[test]
    fn attention_on_cuda_agrees_with_the_reference() {
        let Some(mut gpu) = Gpu::of("attention::cuda", SOURCE) else { return };
        let mut shapes = vec![
            (Forest::new(0, DIALOGUE, 1), heads(4, 2, 64), 0),
            (Forest::new(0, DIALOGUE, 4), heads(4, 1, 48), 0),
            (Forest::new(30, DIALOGUE, 3), heads(3, 1, 16), 0),
            (continued(DIALOGUE, 29), heads(2, 1, 32), 29),
            (continued(&[(None, 130), (Some(0), 3), (Some(0), 2)], 130), heads(2, 2, 16), 130),
            (Forest::new(0, &[], 1), heads(3, 1, 16), 0),
            // Tiles of which every pair is visible.
            (Forest::new(0, &[(None, 200)], 1), heads(2, 1, 32), 0),
        ];
        shapes.extend([61, 62, 125, 126].map(|len| (line(len), heads(2, 1, 16), 0)));
        shapes.extend(HEAD_SIZES.map(|dim| (line(37), heads(2, 1, dim), 0)));
        for (forest, heads, cached) in shapes {
            let keys = forest.key_rows();
            passes_the_rule(&mut gpu, forest, heads, cached).unwrap_or_else(|e| panic!("{keys} keys: {e}"));
        }
    }

    /// Row bits do not depend on which queries are asked beside it, a key's on which other queries there are.
    #[test]
    fn a_querys_bits_do_not_depend_on_its_neighbours() {
        let Some(mut gpu) = Gpu::with("attention::cuda", SOURCE, SMALL) else { return };
        let all = Case::<bf16>::new(Forest::new(0, DIALOGUE, 1), heads(2, 1, 16));
        let want = run(&mut gpu, &all, 0, None).unwrap();
        let mut some = Case::<bf16>::new(Forest::new(0, DIALOGUE, 3), heads(2, 1, 16));
        (some.k, some.v) = (all.k.clone(), all.v.clone());
        let pick = |x: &[bf16]| x.chunks(32).step_by(3).flatten().copied().collect::<Vec<_>>();
        (some.q, some.d_o) = (pick(&all.q), pick(&all.d_o));
        let got = run(&mut gpu, &some, 0, None).unwrap();
        same_bits(&got.o, &pick(&want.o)).unwrap();
        same_bits(&got.lse, &want.lse.chunks(2).step_by(3).flatten().copied().collect::<Vec<_>>()).unwrap();
        same_bits(&got.dq, &want.dq.chunks(32).step_by(3).flatten().copied().collect::<Vec<_>>()).unwrap();
    }

    /// Did what sees (query or key) `i` become no number everywhere, and what does not see it keep its bits?
    fn reached<E: crate::Elem>(what: &str, i: usize, sees: bool, got: &[E], clean: &[E]) -> Result<(), String> {
        let finite = |x: &E| x.widen().to_f64().is_finite();
        match sees {
            true if !got.iter().any(finite) => Ok(()),
            true => Err(format!("{what} {i} is finite")),
            false => same_bits(got, clean).map_err(|e| format!("{what} {i}: {e}")),
        }
    }

    /// NaN or infinity in key row 20 of k or v and in query 20: every output that sees it is no number, and no other bit
    /// changes.
    fn nan_reaches_what_sees_it(gpu: &mut Gpu) -> Result<(), String> {
        let case = || Case::<bf16>::new(Forest::new(0, &[(None, 30), (Some(0), 20), (None, 60)], 1), heads(2, 1, 16));
        let (bad, clean) = (20, run(gpu, &case(), 0, None)?);
        for which in 0..2 {
            let mut case = case();
            [&mut case.k, &mut case.v][which][bad * 16 + 3] = [bf16::NAN, bf16::INFINITY][which];
            let got = run(gpu, &case, 0, Some(&clean))?;
            for i in 0..110 {
                let (row, sees) = (i * 32..(i + 1) * 32, (bad..50).contains(&i));
                reached("o", i, sees, &got.o[row.clone()], &clean.o[row.clone()])?;
                reached("dq", i, sees, &got.dq[row.clone()], &clean.dq[row])?;
            }
        }
        for which in 0..2 {
            let mut case = case();
            [&mut case.q, &mut case.d_o][which][bad * 32..][..32].fill(bf16::NAN);
            let got = run(gpu, &case, 0, Some(&clean))?;
            for j in 0..110 {
                let row = j * 16..(j + 1) * 16;
                reached("dk", j, j <= bad, &got.dk[row.clone()], &clean.dk[row.clone()])?;
                reached("dv", j, j <= bad, &got.dv[row.clone()], &clean.dv[row])?;
            }
        }
        Ok(())
    }

    #[test]
    fn nan_reaches_exactly_the_rows_that_see_it() {
        let Some(mut gpu) = Gpu::with("attention::cuda", SOURCE, SMALL) else { return };
        nan_reaches_what_sees_it(&mut gpu).unwrap();
    }

    /// Every fault is reported, or changes a result.
    #[test]
    fn faults_are_found() {
        let faults = [
            (
                "a weak wait",
                "[2] = {};\n    for (; at < last; at++) {\n        copy_wait<0>",
                "[2] = {};\n    for (; at < last; at++) {\n        copy_wait<1>",
            ),
            ("no barrier before a stage", "__syncthreads();\n        if (step + 1", "if (step + 1"),
            ("no barrier after the notes", "    __syncthreads();\n}", "}"),
            (
                "a row too many",
                "row < rows ? from + value : from, row < rows",
                "row <= rows ? from + value : from, row <= rows",
            ),
            (
                "half a warp",
                "__shfl_xor_sync(FULL, bad, 1)",
                "(threadIdx.x % WARP < 16 ? __shfl_xor_sync(FULL, bad, 1) : 0)",
            ),
            ("nothing written", "if (threadIdx.x >= TILE) return;", "if (threadIdx.x >= TILE - 1) return;"),
            ("hidden values kept", "*at = make_uint4(0, 0, 0, 0);", ""),
            ("a cached key's gradient", "key.at[half] < shape.cached || ", ""),
        ];
        let sound = |gpu: &mut Gpu| {
            let forest = continued(&[(None, 90), (Some(0), 3), (Some(0), 37)], 20);
            passes_the_rule(gpu, forest, heads(2, 1, 16), 20).and_then(|()| nan_reaches_what_sees_it(gpu))
        };
        let Some(mut gpu) = Gpu::with("attention::cuda", SOURCE, SMALL) else { return };
        sound(&mut gpu).unwrap();
        for (what, from, to) in faults {
            let Some(mut gpu) = Gpu::edited_with("attention::cuda", SOURCE, from, to, SMALL) else { return };
            assert!(sound(&mut gpu).is_err(), "{what} was not found");
        }
    }

    /// The softmax over one key is 1 whatever its score: no gradient passes through it.
    #[test]
    fn one_key_has_weight_one_and_exactly_no_gradient() {
        let Some(mut gpu) = Gpu::with("attention::cuda", SOURCE, SMALL) else { return };
        let case = Case::<bf16>::new(Forest::new(0, &[(None, 1); 70], 1), heads(2, 1, 16));
        let got = run(&mut gpu, &case, 0, None).unwrap();
        assert!(got.o.chunks(32).zip(case.v.chunks(16)).all(|(o, v)| o == [v, v].concat()));
        assert!(got.dq.iter().chain(&got.dk).all(|x| *x == 0.0));
    }

    #[test]
    #[should_panic(expected = "attention: heads of 24; there are kernels for")]
    fn other_head_sizes_are_refused() {
        let none = Ptr(0);
        let (heads, rows) = (heads(1, 1, 24), none);
        let shape = Shape {
            heads,
            queries: 1,
            keys: 1,
            cached: 0,
            rows,
            end: none,
            q_first: none,
            q_list: none,
            k_first: none,
            k_list: none,
        };
        forward(none, none, none, none, none, &shape);
    }

    /// The definition, pair by pair: the entry of query tile `i` and key tile `j`, if they meet.
    fn entry_of(rows: &[u32], end: &[u32], i: usize, j: usize) -> Option<u32> {
        let tile = TILE as usize;
        let pairs = (i * tile..(i + 1) * tile).flat_map(|i| (j * tile..(j + 1) * tile).map(move |j| (i, j)));
        let sees = |(i, j)| i < rows.len() && j < end.len() && j as u32 <= rows[i] && (i as u32) < end[j];
        let count = pairs.filter(|pair| sees(*pair)).count();
        (count > 0).then_some(if count == tile * tile { WHOLE } else { 0 })
    }

    fn tiles_are_those_of_the_definition(rows: &[u32], end: &[u32]) {
        let (tiles, tile) = (tiles(rows, end), TILE as usize);
        let (queries, keys) = (rows.len().div_ceil(tile), end.len().div_ceil(tile));
        let list = |first: &[u32], list: &[u32], at: usize| list[first[at] as usize..first[at + 1] as usize].to_vec();
        for i in 0..queries {
            let want: Vec<_> = (0..keys).filter_map(|j| Some(entry_of(rows, end, i, j)? | j as u32)).collect();
            assert_eq!(list(&tiles.q_first, &tiles.q_list, i), want, "query tile {i}");
        }
        for j in 0..keys {
            let want: Vec<_> = (0..queries).filter_map(|i| Some(entry_of(rows, end, i, j)? | i as u32)).collect();
            assert_eq!(list(&tiles.k_first, &tiles.k_list, j), want, "key tile {j}");
        }
        assert_eq!((tiles.q_first.len(), tiles.k_first.len()), (queries + 1, keys + 1));
    }

    #[test]
    fn a_line_has_whole_tiles_below_its_diagonal() {
        let line = tiles(&(0..200).collect::<Vec<_>>(), &[200; 200]);
        assert_eq!(line.q_first, [0, 1, 3, 6, 10]);
        let whole = |tile: u32| tile | WHOLE;
        assert_eq!(line.q_list, [0, whole(0), 1, whole(0), whole(1), 2, 0, 1, 2, 3]);
        assert_eq!(line.k_list, [0, whole(1), whole(2), 3, 1, whole(2), 3, 2, 3, 3]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Random forests in preorder, their first rows cached, every so manyth token a query.
        #[test]
        fn tiles_of_forests(
            spans in prop::collection::vec((any::<prop::sample::Index>(), 1u32..150), 0..12),
            cached in 0u32..200,
            every in 1usize..4,
        ) {
            // A parent among the last span and its ancestors keeps preorder.
            let mut placed: Vec<(Option<usize>, u32)> = Vec::new();
            for (parent, len) in spans {
                let last = placed.len().checked_sub(1);
                let line: Vec<_> = std::iter::successors(last, |span: &usize| placed[*span].0).collect();
                placed.push((line.get(parent.index(line.len() + 1)).copied(), len));
            }
            let mut forest = Forest::new(0, &placed, every);
            forest.rows.retain(|row| *row >= cached);
            tiles_are_those_of_the_definition(&forest.rows, &ends(&forest));
        }

        /// Whatever the ends are.
        #[test]
        fn tiles_of_anything(
            gaps in prop::collection::vec(0u32..4, 0..300),
            ends in prop::collection::vec(0u32..400, 0..300),
        ) {
            let rows: Vec<u32> = gaps.iter().scan(0, |row, gap| { *row += gap; Some(*row) }).collect();
            let ends: Vec<u32> = ends.iter().map(|end| *end.min(&(rows.len() as u32))).collect();
            tiles_are_those_of_the_definition(&rows, &ends);
        }
    }
}
