//! What watches tell while the controller writes. It is taken off their hands at once: octets that nobody
//! reads count against what one connection may have on its way, and the answers to the writes come by the
//! same connection.

use std::{
    collections::{BTreeMap, HashMap},
    pin::pin,
};

use kube::runtime::watcher::Event;
use tokio::sync::mpsc;

use super::{kinds::List, watching::News};

/// News in their order, of each object only the last: as much as a few lists have, however often
/// objects change.
#[derive(Default)]
pub(super) struct Backlog {
    news: BTreeMap<u64, (List, News)>,
    lists: BTreeMap<List, Places>,
    next: u64,
}

/// Where the news of one watch are.
#[derive(Default)]
struct Places {
    /// By name, since a list began or ended last.
    objects: HashMap<String, u64>,
    /// What was said about the watch itself.
    watch: Option<u64>,
    /// The beginning of a list that has not ended yet.
    list: Option<u64>,
}

impl Backlog {
    /// Adds news, and drops those that make no difference any more.
    fn add(&mut self, list: List, news: News) {
        let place = self.next;
        self.next += 1;
        let places = self.lists.entry(list).or_default();
        let before = match &news {
            News::Event(event) => match &**event {
                Event::InitApply(object) | Event::Apply(object) | Event::Delete(object) => {
                    let name = object.metadata.name.clone().unwrap_or_default();
                    places.objects.insert(name, place)
                }
                Event::Init => {
                    // Of one that broke off, what it had told stays.
                    let broken = places.list.replace(place);
                    if broken.is_none() {
                        places.objects.clear();
                    }
                    broken
                }
                Event::InitDone => {
                    places.objects.clear();
                    if let Some(begun) = places.list.take() {
                        // All that there was before it is said anew.
                        self.news.retain(|before, (of, _)| *of != list || *before >= begun);
                    }
                    None
                }
            },
            News::Resumed | News::Failed { .. } => places.watch.replace(place),
        };
        if let Some(before) = before {
            self.news.remove(&before);
        }
        self.news.insert(place, (list, news));
    }

    /// All of it, in order.
    pub(super) fn take(&mut self) -> impl Iterator<Item = (List, News)> + use<> {
        std::mem::take(self).news.into_values()
    }

    /// Waits for work to be done, and gathers what is told meanwhile.
    pub(super) async fn gather_during<T>(
        &mut self,
        work: impl Future<Output = T>,
        news: &mut mpsc::Receiver<(List, News)>,
    ) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                Some((list, news)) = news.recv() => self.add(list, news),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use proptest::prelude::*;
    use serde_json::Value;
    use tokio::{sync::oneshot, time::timeout};

    use super::{
        super::{samples::object, world::World},
        *,
    };

    fn event(event: Event<kube::core::DynamicObject>) -> News {
        News::Event(Box::new(event))
    }

    fn node(name: &str, version: u64) -> kube::core::DynamicObject {
        let mut node = object(List::Nodes, name, Value::Null);
        node.metadata.resource_version = Some(version.to_string());
        node
    }

    #[tokio::test]
    async fn watches_are_read_while_a_write_waits_for_its_answer() {
        const TOLD: u64 = 10_000;
        let (sender, mut news) = mpsc::channel(1);
        let (answer, written) = oneshot::channel();
        // The answer comes by the connection behind all that the watches tell.
        let server = tokio::spawn(async move {
            for version in 0..TOLD {
                let told = event(Event::Apply(node(&format!("n{}", version % 10), version)));
                sender.send((List::Nodes, told)).await.ok().unwrap();
            }
            answer.send(()).unwrap();
        });
        let mut backlog = Backlog::default();
        let write = backlog.gather_during(written, &mut news);
        timeout(Duration::from_secs(60), write).await.expect("the write waits for ever").unwrap();
        server.await.unwrap();
        let mut told: Vec<_> = backlog.take().collect();
        // One may be in the channel still.
        told.extend(std::iter::from_fn(|| news.try_recv().ok()));
        assert!((10..=11).contains(&told.len()), "{}", told.len());
        let mut world = World::default();
        for (list, news) in told {
            world.take(list, news);
        }
        let versions = world.nodes.values().map(|meta| meta.version.parse().unwrap());
        assert_eq!(versions.collect::<Vec<u64>>(), Vec::from_iter(TOLD - 10..TOLD));
        assert_eq!(backlog.take().count(), 0);
    }

    /// What a watch may tell, as numbers: an object is there, an object goes, a list of these objects.
    #[derive(Debug, Clone)]
    enum Told {
        There(u8),
        Gone(u8),
        List(Vec<u8>),
        /// One that broke off.
        Part(Vec<u8>),
        Failed,
        Resumed,
    }

    /// Of these two the world keeps the metadata as they are.
    const LISTS: [List; 2] = [List::Nodes, List::Claims];

    fn told() -> impl Strategy<Value = (List, Told)> {
        let names = || proptest::collection::vec(0u8..4, 0..4);
        let told = prop_oneof![
            (0u8..4).prop_map(Told::There),
            (0u8..4).prop_map(Told::Gone),
            names().prop_map(Told::List),
            names().prop_map(Told::Part),
            Just(Told::Failed),
            Just(Told::Resumed),
        ];
        (proptest::sample::select(&LISTS[..]), told)
    }

    /// Nothing but a list is told by a watch between the beginning of one and its end.
    fn news(
        first_version: u64,
        listing: &mut BTreeSet<List>,
        told: &[(List, Told)],
    ) -> Vec<(List, News)> {
        let mut all = Vec::new();
        for (version, (of, told)) in (first_version..).zip(told) {
            let node = |n: &u8| {
                let mut told = object(*of, &format!("n{n}"), Value::Null);
                told.metadata.resource_version = Some(version.to_string());
                told
            };
            let list = |names: &[u8]| {
                let items = names.iter().map(|name| event(Event::InitApply(node(name))));
                std::iter::once(event(Event::Init)).chain(items).collect::<Vec<_>>()
            };
            let news = match told {
                Told::There(_) | Told::Gone(_) if listing.contains(of) => continue,
                Told::There(name) => vec![event(Event::Apply(node(name)))],
                Told::Gone(name) => vec![event(Event::Delete(node(name)))],
                Told::List(names) => {
                    listing.remove(of);
                    list(names).into_iter().chain([event(Event::InitDone)]).collect()
                }
                Told::Part(names) => {
                    listing.insert(*of);
                    list(names)
                }
                Told::Failed => {
                    vec![News::Failed { text: format!("away: {version}"), refused: false }]
                }
                Told::Resumed => vec![News::Resumed],
            };
            all.extend(news.into_iter().map(|news| (*of, news)));
        }
        all
    }

    /// What a world has of these lists.
    fn known(world: &World) -> impl PartialEq + std::fmt::Debug {
        let claims = world.claims.iter().map(|(name, entry)| (name.clone(), entry.meta.clone()));
        let is_known = LISTS.map(|list| (world.is_current(list), world.is_complete(list)));
        (world.nodes.clone(), claims.collect::<BTreeMap<_, _>>(), world.faults(), is_known)
    }

    proptest! {
        #[test]
        fn what_is_dropped_makes_no_difference(
            before in proptest::collection::vec(told(), 0..8),
            during in proptest::collection::vec(told(), 0..24),
        ) {
            let (mut one_by_one, mut gathered) = (World::default(), World::default());
            let mut listing = [BTreeSet::new(), BTreeSet::new()];
            let worlds = [&mut one_by_one, &mut gathered];
            for (world, listing) in worlds.into_iter().zip(&mut listing) {
                for (list, news) in news(1, listing, &before) {
                    world.take(list, news);
                }
            }
            let mut backlog = Backlog::default();
            let [ones, others] = listing.each_mut().map(|listing| news(100, listing, &during));
            for ((list, one), (_, other)) in ones.into_iter().zip(others) {
                one_by_one.take(list, one);
                backlog.add(list, other);
            }
            let most = LISTS.len() * (3 * 4 + 4);
            prop_assert!(backlog.news.len() <= most, "{}", backlog.news.len());
            for (list, news) in backlog.take() {
                gathered.take(list, news);
            }
            prop_assert_eq!(known(&one_by_one), known(&gathered));
        }
    }
}
