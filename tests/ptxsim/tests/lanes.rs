//! Exchange between lanes, from the definitions in the PTX manual.

mod common;
use common::{Random, get, gpu, pointers, put};

/// The lane that `shfl` reads, within segments of `width`; its own where there is none.
fn source(lane: usize, width: usize, other: impl Fn(usize) -> Option<usize>) -> usize {
    let start = lane / width * width;
    other(lane - start).filter(|&other| other < width).map_or(lane, |other| start + other)
}

#[test]
fn every_shuffle_vote_and_match_gives_what_it_is_defined_to() {
    let Some(mut gpu) = gpu("shuffles", "lanes.cu") else { return };
    let x: Vec<u32> = Random(1).u32s(32).iter().map(|x| x % 1024).collect();
    let (out, input) = (gpu.empty(32 * 16 * 4), put(&mut gpu, &x));
    gpu.run("shuffles", [1, 1, 1], [32, 1, 1], 0, &pointers(&[out, input])).unwrap();
    let mask =
        |holds: &dyn Fn(usize) -> bool| (0..32).filter(|&lane| holds(lane)).fold(0u32, |mask, lane| mask | 1 << lane);
    for (lane, got) in get::<u32>(&gpu, out).chunks(16).enumerate() {
        let xor = |by: usize, width| source(lane, width, |own| Some(own ^ by));
        let expect = [
            x[lane * 7 % 32],
            x[lane / 8 * 8 + (lane + 3) % 8],
            x[source(lane, 32, |own| own.checked_sub(3))],
            x[source(lane, 16, |own| own.checked_sub(5))],
            x[source(lane, 32, |own| Some(own + 3))],
            x[source(lane, 4, |own| Some(own + 1))],
            x[xor(9, 32)],
            // Of the next segment a lane reads nothing, of an earlier one it may.
            x[if lane ^ 9 <= lane / 8 * 8 + 7 { lane ^ 9 } else { lane }],
            mask(&|other| x[other] & 1 == 1),
            u32::from(x.contains(&0)),
            u32::from(x.iter().all(|&x| x < 1000)),
            mask(&|other| x[other] % 5 == x[lane] % 5),
            x.iter().sum(),
            *x.iter().max().unwrap(),
            !0,
            x[if lane < 16 { lane ^ 1 } else { lane ^ 2 }],
        ];
        assert_eq!(got, expect, "lane {lane}");
    }
}

#[test]
fn barriers_count_the_answers_of_all_threads() {
    let Some(mut gpu) = gpu("answers", "lanes.cu") else { return };
    for x in [vec![1; 96], (0..96).collect::<Vec<u32>>(), (905..1001).collect()] {
        let (out, input) = (gpu.empty(96 * 12), put(&mut gpu, &x));
        gpu.run("answers", [1, 1, 1], [96, 1, 1], 0, &pointers(&[out, input])).unwrap();
        let odd = x.iter().filter(|&x| x % 2 == 1).count() as u32;
        let expect = [odd, u32::from(x.iter().all(|&x| x < 1000)), u32::from(x.contains(&0))];
        let got = get::<u32>(&gpu, out);
        assert!(
            got.chunks(3).all(|got| (got[0], got[1] != 0, got[2] != 0) == (expect[0], expect[1] != 0, expect[2] != 0))
        );
    }
}
