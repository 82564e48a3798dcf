use twill_types::Family;

use super::{
    Session,
    attributes::{PathAttributes, kind},
    collect::{Collected, MpReach},
    fault::{Disposition, Fault, Reset},
    nlri::Routes,
    notification::{Notification, code, update_error},
    reader::Reader,
};

/// What an UPDATE says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpdateIn {
    /// Withdrawn routes of both families, those included that are treated so.
    pub withdrawn: Routes,
    /// New routes: at most one group from the NLRI field and one from MP_REACH_NLRI.
    pub announced: Vec<(PathAttributes, Routes)>,
    /// The initial exchange of this family is over (RFC 4724 section 2).
    pub end_of_rib: Option<Family>,
    /// What was wrong with it. What was done is the strongest of their dispositions.
    pub faults: Vec<Fault>,
}

impl UpdateIn {
    /// The strongest that an error asked for; `None` if there was no error.
    pub fn disposition(&self) -> Option<Disposition> {
        self.faults.iter().map(|fault| fault.disposition).max()
    }
}

/// Reads the body of an UPDATE.
///
/// # Errors
/// What ends the session (RFC 4271 section 6.3), where RFC 7606 leaves nothing milder.
pub fn decode_update(body: &[u8], session: &Session) -> Result<UpdateIn, Reset> {
    // RFC 4271 section 6.3: the lengths of the fields are more than there is.
    let bad_lists = || attribute_list(0, "the fields are longer than the message");
    let mut reader = Reader::new(body);
    let withdrawn = reader.long_field().ok_or_else(bad_lists)?;
    let attributes = reader.long_field().ok_or_else(bad_lists)?;
    let announced = reader.rest();

    // RFC 7606 section 3 j: what cannot be found cannot be withdrawn.
    let withdrawn = classic(withdrawn, session)?;
    let announced = classic(announced, session)?;
    let mut collected = Collected::new(session);
    collected.attributes(attributes)?;
    finish(collected, attributes.is_empty(), withdrawn, announced)
}

/// A field of IPv4 prefixes (RFC 4271 section 4.3; checked by RFC 7606 sections 3 i and 5.3).
fn classic(field: &[u8], session: &Session) -> Result<Routes, Reset> {
    Routes::decode(field, Family::V4, session.add_path.receives(Family::V4)).ok_or_else(|| {
        let notification = Notification::new(code::UPDATE, update_error::NETWORK_FIELD);
        Reset::new(0, "a prefix is malformed", notification)
    })
}

pub(super) fn attribute_list(attribute: u8, text: &'static str) -> Reset {
    Reset::new(attribute, text, Notification::new(code::UPDATE, update_error::ATTRIBUTE_LIST))
}

fn finish(
    mut collected: Collected<'_>,
    no_attributes: bool,
    mut withdrawn: Routes,
    mut announced: Routes,
) -> Result<UpdateIn, Reset> {
    let session = collected.session;
    let end_of_rib = match &collected.mp_unreach {
        _ if !withdrawn.is_empty() || !announced.is_empty() => None,
        None => (no_attributes && session.ipv4).then_some(Family::V4),
        Some((family, routes)) if collected.only_mp_unreach() && routes.is_empty() => *family,
        Some(_) => None,
    };
    let mp = collected.mp_reach.take();
    let mp_routes = mp.as_ref().map_or(0, |mp| mp.routes.len());
    let reachable = !announced.is_empty() || mp_routes > 0 || collected.skipped;
    if !announced.is_empty() || mp_routes > 0 {
        collected.require(!announced.is_empty());
    }
    let classic = !(withdrawn.is_empty() && announced.is_empty());
    if classic && !session.ipv4 {
        collected.fault(0, Disposition::AfiSafiDisable, "IPv4 unicast was not negotiated");
        (withdrawn, announced) = (Routes::default(), Routes::default());
    }
    let unreach = collected.mp_unreach.take();
    withdrawn.append(unreach.map(|(_, routes)| routes).unwrap_or_default());

    let withdraws =
        collected.faults.iter().find(|f| f.disposition == Disposition::TreatAsWithdraw).cloned();
    if let Some(fault) = withdraws {
        if !reachable {
            // RFC 7606 section 5.2: the routes that the error is about may be lost in it.
            return Err(attribute_list(fault.attribute, fault.text));
        }
        withdrawn.append(announced);
        withdrawn.append(mp.map(|mp| mp.routes).unwrap_or_default());
        let faults = collected.faults;
        return Ok(UpdateIn { withdrawn, announced: Vec::new(), end_of_rib, faults });
    }
    let announced = groups(&mut collected, mp, announced);
    Ok(UpdateIn { withdrawn, announced, end_of_rib, faults: collected.faults })
}

/// The usable routes with their attributes.
fn groups(
    collected: &mut Collected<'_>,
    mp: Option<MpReach>,
    mut classic: Routes,
) -> Vec<(PathAttributes, Routes)> {
    let mut mp = mp.filter(|mp| !mp.routes.is_empty());
    let martians =
        classic.discard_martians() + mp.as_mut().map_or(0, |mp| mp.routes.discard_martians());
    if martians > 0 {
        collected.fault(0, Disposition::PrefixDiscard, "a prefix is no unicast destination");
    }
    let mut groups = Vec::new();
    let next_hop = collected.next_hop;
    let attributes = collected.merged();
    match (mp, next_hop.filter(|_| !classic.is_empty())) {
        (None, None) => {}
        (None, Some(next_hop)) => groups.push((PathAttributes { next_hop, ..attributes }, classic)),
        (Some(mp), next_hop) => {
            if let Some(next_hop) = next_hop {
                groups.push((PathAttributes { next_hop, ..attributes.clone() }, classic));
            }
            let (next_hop, link_local) = (mp.next_hop, mp.link_local);
            groups.push((PathAttributes { next_hop, link_local, ..attributes }, mp.routes));
        }
    }
    groups.retain(|(_, routes)| !routes.is_empty());
    groups
}

impl Collected<'_> {
    /// RFC 7606 section 3 d: a missing mandatory attribute withdraws. NEXT_HOP belongs to the NLRI
    /// field alone (RFC 4760 section 3).
    fn require(&mut self, classic: bool) {
        let present = [
            (kind::ORIGIN, self.origin.is_some()),
            (kind::AS_PATH, self.as_path.is_some()),
            (kind::NEXT_HOP, !classic || self.next_hop.is_some()),
        ];
        for (kind, present) in present {
            // One that is there and broken has its fault already.
            if !present && !self.faults.iter().any(|fault| fault.attribute == kind) {
                self.fault(kind, Disposition::TreatAsWithdraw, "it is missing");
            }
        }
    }
}
