//! The same work on many items by a few threads that end with the call; no pool stays behind.

use crate::{Error, Result};

/// `work` of every item, in their order. The items are cut into `threads` runs (1 works on the caller's thread).
///
/// # Errors
/// The first one in the order of the items.
pub(super) fn spread<T: Sync, R: Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let run = |items: &[T]| items.iter().map(&work).collect::<Result<Vec<R>>>();
    let size = items.len().div_ceil(threads.max(1)).max(1);
    if size >= items.len() {
        return run(items);
    }
    let runs: Vec<Result<Vec<R>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = items.chunks(size).map(|items| scope.spawn(|| run(items))).collect();
        let panicked = |_| Err(Error::internal("a thread that makes prompts panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    Ok(runs.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items_for_any_number_of_threads() {
        let items: Vec<usize> = (0..10).collect();
        for threads in [0, 1, 2, 3, 7, 20] {
            assert_eq!(
                spread(threads, &items, |&i| Ok(i * i)).unwrap(),
                items.iter().map(|i| i * i).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn the_first_error_is_the_one_reported() {
        let items = [1, 2, 3, 4];
        let fail = |&i: &i32| if i > 1 { Err(Error::invalid(format!("{i}"))) } else { Ok(i) };
        assert_eq!(spread(2, &items, fail).unwrap_err().text(), "2");
    }
}
