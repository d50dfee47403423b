//! mma and ldmatrix against the PTX manual's tables of fragments, written out here once more.

mod common;
use common::{Random, get, gpu, pointers, put};

/// Small whole numbers: every product and sum is exact in bf16 and f32.
fn small(random: &mut Random) -> f32 {
    (random.next() % 17) as f32 - 8.0
}

fn half(x: f32) -> u32 {
    x.to_bits() >> 16
}

/// (row, column) of element `i` of a's fragment: "row = groupID for a0, a1, a4, a5, else groupID + 8;
/// col = threadID_in_group * 2 + (i & 1), for i >= 4 plus 8".
fn place_a(lane: usize, i: usize) -> (usize, usize) {
    let row = if [0, 1, 4, 5].contains(&i) { lane >> 2 } else { (lane >> 2) + 8 };
    (row, (lane % 4) * 2 + (i & 1) + if i >= 4 { 8 } else { 0 })
}
/// Of b's: "row = threadID_in_group * 2 + (i & 1), for i >= 2 plus 8; col = groupID".
fn place_b(lane: usize, i: usize) -> (usize, usize) {
    ((lane % 4) * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, lane >> 2)
}
/// Of c's and d's: "row = groupID for c0, c1, else groupID + 8; col = threadID_in_group * 2 + (i & 1)".
fn place_c(lane: usize, i: usize) -> (usize, usize) {
    (if i < 2 { lane >> 2 } else { (lane >> 2) + 8 }, (lane % 4) * 2 + (i & 1))
}

fn compare(entry: &str, k: usize) {
    let Some(mut gpu) = gpu(entry, "matrix.cu") else { return };
    let mut random = Random(k as u64);
    let mut draw = |rows: usize, columns: usize| -> Vec<Vec<f32>> {
        (0..rows).map(|_| (0..columns).map(|_| small(&mut random)).collect()).collect()
    };
    let (a, b, c) = (draw(16, k), draw(k, 8), draw(16, 8));
    let pack = |count: usize, element: &dyn Fn(usize, usize) -> f32| -> Vec<u32> {
        let words = |lane: usize| {
            (0..count / 2).map(move |i| half(element(lane, 2 * i)) | half(element(lane, 2 * i + 1)) << 16)
        };
        (0..32).flat_map(words).collect()
    };
    let at = |matrix: &[Vec<f32>], (row, column): (usize, usize)| matrix[row][column];
    let left = pack(k / 2, &|lane, i| at(&a, place_a(lane, i)));
    let right = pack(k / 4, &|lane, i| at(&b, place_b(lane, i)));
    let start: Vec<f32> = (0..128).map(|i| at(&c, place_c(i / 4, i % 4))).collect();
    let d = gpu.empty(128 * 4);
    let params = pointers(&[d, put(&mut gpu, &left), put(&mut gpu, &right), put(&mut gpu, &start)]);
    gpu.run(entry, [1, 1, 1], [32, 1, 1], 0, &params).unwrap();
    for (i, got) in get::<f32>(&gpu, d).into_iter().enumerate() {
        let (row, column) = place_c(i / 4, i % 4);
        let want = c[row][column] + (0..k).map(|k| a[row][k] * b[k][column]).sum::<f32>();
        assert_eq!(got, want, "{entry}, row {row}, column {column}");
    }
}

#[test]
fn products_of_16_by_8_by_16_are_the_matrices_product() {
    compare("products", 16);
}

#[test]
fn products_of_16_by_8_by_8_are_the_matrices_product() {
    compare("short_products", 8);
}

#[test]
fn matrices_are_loaded_whole_and_transposed() {
    let Some(mut gpu) = gpu("loads", "matrix.cu") else { return };
    // Element (row, column) of matrix m has the value 64 m + 8 row + column.
    let elements: Vec<u16> = (0..256).collect();
    let (out, rows) = (gpu.empty(32 * 14 * 4), put(&mut gpu, &elements));
    gpu.run("loads", [1, 1, 1], [32, 1, 1], 0, &pointers(&[out, rows])).unwrap();
    for (lane, got) in get::<u32>(&gpu, out).chunks(14).enumerate() {
        let (group, member) = (lane as u32 / 4, lane as u32 % 4 * 2);
        let plain = |m: u32| (64 * m + 8 * group + member) | (64 * m + 8 * group + member + 1) << 16;
        let transposed = |m: u32| (64 * m + 8 * member + group) | (64 * m + 8 * (member + 1) + group) << 16;
        let expect = [[0, 1, 2, 3].map(plain), [0, 1, 2, 3].map(transposed)].concat();
        assert_eq!(got[..8], expect, "lane {lane}");
        assert_eq!(
            got[8..],
            [plain(0), plain(1), transposed(0), transposed(1), plain(0), transposed(0)],
            "lane {lane}"
        );
    }
}
