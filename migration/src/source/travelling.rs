//! The disks that travel with a guest, at its source.

use std::sync::Arc;

use super::course::Course;
use crate::blocks::MAX_SIZE;
use crate::blocks::sender::Disks;
use crate::disk_bytes::SnapshotDisk;
use crate::disk_modes::{self, AfterMove, DiskMode, MoveOrder};
use crate::error::Error;
use crate::progress::{LeftImage, OnDemandDisk, Verify};
use crate::request::MigrateRequest;
use crate::source_loss::OnSourceLoss;
use crate::undo::Undo;
use crate::vm::{Served, SourceVm, SourceVolume, TravellingDisk, VolumeOffer, Wish};
use crate::wire::MAX_VOLUMES;
use crate::wire::agreed::Agreed;
use crate::wire::blocks::SECTOR;
use crate::wire::capabilities::Capabilities;
use crate::wire::control::BlocksLeft;

/// How a disk moves.
struct Chosen {
    mode: DiskMode,
    /// What becomes of its image.
    after: AfterMove,
    /// Bytes that its guest may be ahead of the link, if it is mirrored.
    backlog: Option<u64>,
    /// Bytes that it may write in a second then.
    writes: Option<u64>,
    /// When it moves.
    order: Option<MoveOrder>,
    on_source_loss: OnSourceLoss,
}

/// They, and what was said of each.
pub(super) struct Travelling {
    volumes: Vec<Arc<dyn SourceVolume>>,
    offers: Vec<VolumeOffer>,
    /// What its user has chosen for each, in the same order.
    chosen: Vec<Chosen>,
    /// Those that the destination says it holds whole and durable.
    whole: Vec<String>,
}

impl Travelling {
    /// Those of `vm`, of which its user has chosen that.
    pub fn of(vm: &dyn SourceVm, request: &MigrateRequest) -> Result<Self, Error> {
        let choices = &request.disks;
        let volumes = vm.volumes().map_err(Error::vm("tell which disks travel"))?;
        let offer = |volume: &Arc<dyn SourceVolume>| {
            let offer = volume.offer();
            let chosen = disk_modes::chosen(choices, &offer.id);
            let served = request.served.iter().find(|served| served.disk == offer.id);
            VolumeOffer {
                format: chosen.and_then(|choice| choice.format),
                served: served.map(|served| Served {
                    pull: chosen.map(|choice| choice.pull).unwrap_or_default(),
                    on_source_loss: chosen
                        .map(|choice| choice.on_source_loss)
                        .unwrap_or_default(),
                    ..served.by.clone()
                }),
                ..offer
            }
        };
        let offers: Vec<_> = volumes.iter().map(offer).collect();
        let chosen = |offer: &VolumeOffer| {
            let choice = disk_modes::chosen(choices, &offer.id);
            Chosen {
                mode: choice.map(|choice| choice.mode).unwrap_or_default(),
                after: choice.map(|choice| choice.after).unwrap_or_default(),
                backlog: choice.and_then(|choice| choice.backlog),
                writes: choice.and_then(|choice| choice.writes.0),
                order: choice.and_then(|choice| choice.order),
                on_source_loss: choice
                    .map(|choice| choice.on_source_loss)
                    .unwrap_or_default(),
            }
        };
        let chosen = offers.iter().map(chosen).collect();
        let fits =
            |offer: &VolumeOffer| offer.size <= MAX_SIZE && offer.size.is_multiple_of(SECTOR);
        match offers.len() <= MAX_VOLUMES && offers.iter().all(fits) {
            true => Ok(Self {
                volumes,
                offers,
                chosen,
                whole: Vec::new(),
            }),
            false => Err(Error::Volumes),
        }
    }

    /// Leaves out what a destination with which that was agreed on does not take: none, if it is older.
    ///
    /// # Errors
    /// When one has to travel all the same.
    pub fn fit(&mut self, agreed: Agreed) -> Result<(), Error> {
        if agreed.has(Capabilities::VOLUMES) {
            return self.fit_terms(agreed);
        }
        match self
            .offers
            .iter()
            .all(|offer| offer.wish == Wish::MayTravel)
        {
            true => {
                self.keep(&[])?;
                Ok(())
            }
            false => Err(Error::NoVolumes),
        }
    }

    /// That the destination understands what is said of them.
    fn fit_terms(&self, agreed: Agreed) -> Result<(), Error> {
        let is_later = |offer: &&VolumeOffer| offer.wish == Wish::OnDemand;
        if let Some(offer) = self.offers.iter().find(is_later)
            && !agreed.has(Capabilities::ON_DEMAND)
        {
            let id = offer.id.clone();
            return Err(Error::NoOnDemand { id });
        }
        if let Some(offer) = self.offers.iter().find(|offer| offer.may_leave_rest())
            && !agreed.has(Capabilities::DISK_RESTS)
        {
            let id = offer.id.clone();
            return Err(Error::NoDiskRests { id });
        }
        let in_part = self.offers.iter().find(|offer| !offer.behind.is_empty());
        if let Some(offer) = in_part
            && !agreed.has(Capabilities::CHAIN)
        {
            let id = offer.id.clone();
            return Err(Error::NoChain { id });
        }
        let mut all = self.offers.iter().zip(&self.chosen);
        if let Some((offer, _)) = all.find(|(_, chosen)| !chosen.on_source_loss.is_pause())
            && !agreed.has(Capabilities::SOURCE_LOSS)
        {
            let id = offer.id.clone();
            let wanted = "on-source-loss=";
            return Err(Error::NoDiskTerms { id, wanted });
        }
        if agreed.has(Capabilities::DISK_TERMS) {
            return Ok(());
        }
        let wanted = |(offer, chosen): (&VolumeOffer, &Chosen)| match (offer.format, chosen.after) {
            (Some(_), _) => Some((offer.id.clone(), "format=")),
            (None, AfterMove::Delete) => Some((offer.id.clone(), "after=delete")),
            (None, AfterMove::Keep) => None,
        };
        match self.offers.iter().zip(&self.chosen).find_map(wanted) {
            Some((id, wanted)) => Err(Error::NoDiskTerms { id, wanted }),
            None => Ok(()),
        }
    }

    /// Leaves out what does not travel, as the destination has chosen.
    ///
    /// # Errors
    /// When it has chosen what was not offered, or not what has to travel.
    pub fn keep(&mut self, chosen: &[TravellingDisk]) -> Result<(), Error> {
        let is_chosen = |offer: &VolumeOffer| chosen.iter().any(|disk| disk.id == offer.id);
        let kept: Vec<_> = self.offers.iter().map(is_chosen).collect();
        let is_left_out =
            |(offer, kept): (&VolumeOffer, &bool)| offer.wish != Wish::MayTravel && !kept;
        let mut kept_ids = self.offers.iter().filter(|offer| is_chosen(offer));
        let in_order = chosen
            .iter()
            .all(|disk| kept_ids.next().is_some_and(|offer| offer.id == disk.id));
        if !in_order || self.offers.iter().zip(&kept).any(is_left_out) {
            return Err(Error::Volumes);
        }
        let mut keep = kept.iter();
        self.offers
            .retain(|_| keep.next().copied().unwrap_or(false));
        let mut keep = kept.iter();
        self.volumes
            .retain(|_| keep.next().copied().unwrap_or(false));
        let mut keep = kept.iter();
        self.chosen
            .retain(|_| keep.next().copied().unwrap_or(false));
        Ok(())
    }

    /// The destination says that it holds these whole and durable.
    pub fn are_whole(&mut self, ids: Vec<String>) {
        self.whole = ids;
    }

    /// What is left of them here, now that they are the destination's.
    pub fn left(&self) -> Vec<LeftImage> {
        let all = self.volumes.iter().zip(&self.offers).zip(&self.chosen);
        let left = all.map(|((volume, offer), chosen)| LeftImage {
            id: offer.id.clone(),
            path: volume.image(),
            after: chosen.after,
            whole: self.whole.contains(&offer.id),
            removed: false,
        });
        left.collect()
    }

    /// Those whose content is fetched from here, of which so much was `sent` before.
    pub fn on_demand(&self, sent: &Disks) -> Vec<OnDemandDisk> {
        let all = self.offers.iter().enumerate();
        let all = all.zip(&self.chosen);
        let later = all.filter(|((number, offer), _)| {
            offer.wish == Wish::OnDemand || sent.leaves_rest(*number)
        });
        let told = later.map(|((number, offer), chosen)| OnDemandDisk {
            order: chosen.order,
            id: offer.id.clone(),
            served_at: offer
                .served
                .as_ref()
                .map(|by| by.at.clone())
                .unwrap_or_default(),
            disk_bytes_before_commit: sent.sent_of(number),
        });
        told.collect()
    }

    /// What was done of those that go by way of overlays.
    pub fn snapshots(&self) -> Vec<SnapshotDisk> {
        let all = self.volumes.iter();
        all.filter_map(|volume| volume.overlays()).collect()
    }

    /// Whether all can still go.
    pub fn check(&self) -> Result<(), Error> {
        let mut all = self.volumes.iter();
        all.try_for_each(|volume| volume.check())
            .map_err(Error::vm("go on with the disks"))
    }

    /// Their identities.
    pub fn ids(&self) -> Vec<String> {
        self.offers.iter().map(|offer| offer.id.clone()).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.offers.is_empty()
    }

    /// Whether the content of any goes with the guest.
    pub fn have_what_goes(&self) -> bool {
        self.offers.iter().any(|offer| offer.wish != Wish::OnDemand)
    }

    /// Whether any moves before its guest's memory.
    pub fn go_first(&self) -> bool {
        let mut all = self.chosen.iter();
        all.any(|chosen| chosen.order == Some(MoveOrder::Before))
    }

    /// Those that go on demand because they are to move after their guest.
    pub fn go_after(&self) -> impl Iterator<Item = &str> {
        let all = self.offers.iter().zip(&self.chosen);
        all.filter_map(|(offer, chosen)| {
            (chosen.order == Some(MoveOrder::After)).then_some(offer.id.as_str())
        })
    }

    /// Has guests write to mirrored disks no more than their user says, by `said` where that was said since.
    pub fn limit_writes(&self, said: impl Fn(&str) -> Option<Option<u64>>) {
        let all = self.volumes.iter().zip(&self.offers).zip(&self.chosen);
        for ((volume, offer), chosen) in all.filter(|(_, chosen)| chosen.mode == DiskMode::Mirror) {
            volume.limit_writes(said(&offer.id).unwrap_or(chosen.writes));
        }
    }

    /// What the destination is told of them.
    pub fn offers(&self) -> &[VolumeOffer] {
        &self.offers
    }

    /// Has their changes marked from here on; that is undone with what it returns.
    pub fn start_tracking<'a>(&self, course: &Course<'a>) -> Result<Option<Undo<'a>>, Error> {
        if self.is_empty() {
            return Ok(None);
        }
        let vm = course.vm;
        let stop = move || {
            vm.untrack_disks()
                .map_err(Error::vm("stop the tracking of disks"))
        };
        let undo = course.undone_by(stop);
        vm.track_disks()
            .map_err(Error::vm("track the changes of disks"))?;
        Ok(Some(undo))
    }

    /// Has their images marked as leaving; that is undone with what it returns.
    pub fn mark<'a>(&self, course: &Course<'a>) -> Result<Option<Undo<'a>>, Error> {
        if self.is_empty() {
            return Ok(None);
        }
        let vm = course.vm;
        let unmark = move || {
            vm.unmark_disks()
                .map_err(Error::vm("take the marks of the disks away"))
        };
        let undo = course.undone_by(unmark);
        vm.mark_disks(course.options.id, &course.to.address())
            .map_err(Error::vm("mark the disks as leaving"))?;
        Ok(Some(undo))
    }

    /// All of them of which anything goes with the guest are mirrored from here on; whether that is news of any.
    pub fn mirror_all(&mut self, sent: &Disks) -> bool {
        let mut is_news = false;
        let all = self.chosen.iter_mut().enumerate();
        for (number, chosen) in all.filter(|(_, chosen)| chosen.mode != DiskMode::OnDemand) {
            is_news |= std::mem::replace(&mut chosen.mode, DiskMode::Mirror) != DiskMode::Mirror;
            sent.mirror(number);
        }
        is_news
    }

    /// All that may leave a rest behind do so from here on; whether that is news of any.
    pub fn leave_rests(&mut self, sent: &Disks) -> bool {
        let mut is_news = false;
        let all = self.offers.iter().enumerate();
        for (number, _) in all.filter(|(_, offer)| offer.may_leave_rest()) {
            is_news |= sent.leave_rest(number);
        }
        is_news
    }

    /// What the destination is told of those that have left a rest behind, when the last marks are taken.
    pub fn rests(&self, sent: &Disks) -> impl Iterator<Item = BlocksLeft> {
        let rests = (0..).zip(&self.offers);
        let rests = rests.filter_map(|(number, _)| Some((number, sent.rest_of(number as usize)?)));
        rests.flat_map(|(number, words)| BlocksLeft::of(number, &words).collect::<Vec<_>>())
    }

    /// Whether there is one that may leave a rest behind.
    pub fn may_leave_rests(&self) -> bool {
        self.offers.iter().any(VolumeOffer::may_leave_rest)
    }

    /// Whether there is none that is not mirrored.
    pub fn are_all_mirrored(&self) -> bool {
        let mut all = self.chosen.iter();
        !self.is_empty() && all.all(|chosen| chosen.mode == DiskMode::Mirror)
    }

    /// Those that are mirrored.
    pub fn mirrored(&self) -> impl Iterator<Item = &Arc<dyn SourceVolume>> {
        self.mirrored_and_bound().map(|(volume, _)| volume)
    }

    /// The same, with what its user says that its guest may be ahead of the link.
    pub fn mirrored_and_bound(
        &self,
    ) -> impl Iterator<Item = (&Arc<dyn SourceVolume>, Option<u64>)> {
        let all = self.volumes.iter().zip(&self.chosen);
        all.filter_map(|(volume, chosen)| {
            (chosen.mode == DiskMode::Mirror).then_some((volume, chosen.backlog))
        })
    }

    /// Nothing of them was sent to who agreed on that.
    pub fn unsent(&self, verify: Verify, streams: u8, agreed: Agreed) -> Disks {
        let disks = Disks::unsent(&self.volumes, &self.offers, verify, streams, agreed);
        let all = self.chosen.iter().enumerate();
        let mirrored = all.filter(|(_, chosen)| chosen.mode == DiskMode::Mirror);
        mirrored.for_each(|(number, _)| disks.mirror(number));
        disks
    }
}
