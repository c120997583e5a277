//! Users, tokens and grants on a real database.

use tempfile::TempDir;
use zeroize::Zeroizing;

use super::{
    limits::RequestLimits,
    token::{Fresh, Presented},
    *,
};
use crate::{app::CORE_MIGRATIONS, audit, db::Durability};

const NOW: u64 = 1_700_000_000_000;
const DAY: u64 = 86_400_000;
const PASSWORD: &str = "correct horse battery";

fn by() -> By {
    By::new("ada", NOW)
}

struct World {
    db: Db,
    access: Access,
    first: Grant,
    _folder: TempDir,
}

impl World {
    async fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("core.db"), Durability::Full, CORE_MIGRATIONS).unwrap();
        let text = ensure_first_token(&db, NOW).await.unwrap().unwrap();
        let first = token_grant(&db, &text, NOW).await.unwrap().unwrap();
        World {
            db,
            access: Access::new(&RequestLimits::default()),
            first,
            _folder: folder,
        }
    }

    async fn user(&self, name: &str, role: Role) -> UserName {
        let who = (name.parse().unwrap(), role);
        let password = Some(Zeroizing::new(PASSWORD.to_owned()));
        self.access
            .create_user(&self.db, who, password, by())
            .await
            .unwrap()
            .name
    }

    async fn sign_in(&self, name: &str, password: &str) -> Option<Grant> {
        let password = Zeroizing::new(password.to_owned());
        self.access.password_grant(&self.db, name, password, NOW).await.unwrap()
    }

    async fn token(&self, by: &Grant, new: NewToken) -> Result<(Grant, MadeToken), AccessError> {
        let made = create_token(&self.db, by, new, NOW).await?;
        Ok((token_grant(&self.db, &made.text, NOW).await?.unwrap(), made))
    }

    async fn now(&self, grant: &Grant) -> Option<Grant> {
        super::grant(&self.db, &grant.credential, NOW).await.unwrap()
    }

    async fn change(&self, name: &UserName, change: UserChange) -> Result<User, AccessError> {
        change_user(&self.db, name.clone(), change, by()).await
    }
}

fn new_token(owner: Owner, role: Option<Role>) -> NewToken {
    NewToken {
        name: "ci".to_owned(),
        role,
        owner,
        ttl_ms: Some(DAY),
    }
}

const SHUT_OUT: UserChange = UserChange {
    role: None,
    disabled: Some(true),
};

#[tokio::test]
async fn the_first_token_is_an_admins_and_is_made_once() {
    let world = World::new().await;
    assert_eq!(world.first.actor.role, Role::Admin);
    assert_eq!(world.first.actor.name, "token:first");
    assert!(ensure_first_token(&world.db, NOW).await.unwrap().is_none());
}

#[tokio::test]
async fn only_the_digest_of_a_token_is_stored() {
    let world = World::new().await;
    let (_, made) = world.token(&world.first, new_token(Owner::Nobody, None)).await.unwrap();
    let secret = made.text.split('_').nth(2).unwrap().to_owned();
    let dump = world.db.read(|conn| {
        let mut statement = conn.prepare("SELECT * FROM access_tokens")?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        let mut all = String::new();
        while let Some(row) = rows.next()? {
            for column in 0..columns {
                all.push_str(&format!("{:?}", row.get_ref(column)?));
            }
        }
        Ok::<_, DbError>(all)
    });
    let dump = dump.await.unwrap();
    assert!(dump.contains("Blob"), "{dump}");
    assert!(!dump.contains(&secret), "{dump}");
}

#[tokio::test]
async fn a_token_with_another_secret_is_nobody() {
    let world = World::new().await;
    let (_, made) = world.token(&world.first, new_token(Owner::Nobody, None)).await.unwrap();
    let other = Fresh::make().unwrap();
    let id = made.token.id.as_str();
    let body = format!("skp_{id}_{}", other.text.split('_').nth(2).unwrap());
    let forged = format!("{body}_{:08x}", crc32c::crc32c(body.as_bytes()));
    // It is well formed: the digest is what refuses it.
    assert!(Presented::parse(&forged).is_some());
    assert_eq!(token_grant(&world.db, &forged, NOW).await.unwrap(), None);
}

#[tokio::test]
async fn a_token_ends_at_its_time() {
    let world = World::new().await;
    let (grant, made) = world.token(&world.first, new_token(Owner::Nobody, None)).await.unwrap();
    assert_eq!(grant.ends_at_ms, Some(NOW + DAY));
    let at = async |now| token_grant(&world.db, &made.text, now).await.unwrap();
    assert!(at(NOW + DAY - 1).await.is_some());
    assert!(at(NOW + DAY).await.is_none());
}

#[tokio::test]
async fn the_last_use_of_a_token_is_known_to_the_minute() {
    let world = World::new().await;
    let (_, made) = world.token(&world.first, new_token(Owner::Nobody, None)).await.unwrap();
    let used = async || {
        let tokens = tokens(&world.db, &world.first.actor).await.unwrap();
        tokens
            .iter()
            .find(|token| token.id == made.token.id)
            .unwrap()
            .last_used_at_ms
    };
    assert_eq!(used().await, Some(NOW));
    token_grant(&world.db, &made.text, NOW + 59_999).await.unwrap();
    assert_eq!(used().await, Some(NOW));
    token_grant(&world.db, &made.text, NOW + 60_000).await.unwrap();
    assert_eq!(used().await, Some(NOW + 60_000));
}

#[tokio::test]
async fn a_password_signs_in_and_nothing_else_does() {
    let world = World::new().await;
    world.user("alice", Role::Operator).await;
    let grant = world.sign_in("alice", PASSWORD).await.unwrap();
    assert_eq!((grant.actor.name.as_str(), grant.actor.role), ("alice", Role::Operator));
    let long = "x".repeat(10_000);
    for (name, password) in [
        ("alice", "correct horse batterz"),
        ("alice", ""),
        ("alice", long.as_str()),
        ("bob", PASSWORD),
        ("Alice", PASSWORD),
        ("' OR 1=1 --", PASSWORD),
    ] {
        assert_eq!(world.sign_in(name, password).await, None, "{name}");
    }
    let who = ("carol".parse().unwrap(), Role::Viewer);
    world.access.create_user(&world.db, who, None, by()).await.unwrap();
    assert_eq!(world.sign_in("carol", "").await, None);
}

#[tokio::test]
async fn failed_sign_ins_wait_and_stand_in_the_audit_log() {
    let world = World::new().await;
    world.user("alice", Role::Viewer).await;
    let from = Network::from(std::net::IpAddr::from([192, 0, 2, 1]));
    let sign_in = async |password: &str| {
        let password = Zeroizing::new(password.to_owned());
        world
            .access
            .sign_in(&world.db, ("alice", password), from, NOW)
            .await
            .unwrap()
    };
    for _ in 0..5 {
        assert!(matches!(sign_in("wrong").await, SignIn::Wrong));
    }
    // Even the right one: whoever guesses must not learn that it was.
    assert!(matches!(sign_in(PASSWORD).await, SignIn::Wait { ms: 1000 }));
    let filter = audit::Filter {
        action: Some("sign-in.refused".to_owned()),
        limit: 10,
        ..audit::Filter::default()
    };
    let entries = audit::list(&world.db, filter).await.unwrap();
    assert_eq!(entries.len(), 5);
    assert_eq!(
        (entries[0].object.as_str(), entries[0].details["from"].as_str()),
        ("user/alice", "192.0.2.1")
    );
}

#[tokio::test]
async fn a_user_that_is_shut_out_has_neither_sessions_nor_tokens() {
    let world = World::new().await;
    let alice = world.user("alice", Role::Operator).await;
    let session = world.sign_in("alice", PASSWORD).await.unwrap();
    let (token, _) = world.token(&session, new_token(Owner::Maker, None)).await.unwrap();
    assert_eq!(token.actor.name, "alice/ci");
    world.change(&alice, SHUT_OUT).await.unwrap();
    assert_eq!(world.now(&session).await, None);
    assert_eq!(world.now(&token).await, None);
    assert_eq!(world.sign_in("alice", PASSWORD).await, None);
    let let_in = UserChange {
        disabled: Some(false),
        ..UserChange::default()
    };
    world.change(&alice, let_in).await.unwrap();
    assert_eq!(world.now(&session).await, None, "an ended session does not come back");
    assert!(world.now(&token).await.is_some());
}

#[tokio::test]
async fn a_new_password_ends_the_sessions() {
    let world = World::new().await;
    let alice = world.user("alice", Role::Viewer).await;
    let session = world.sign_in("alice", PASSWORD).await.unwrap();
    let set = async |password: &str| {
        let password = Zeroizing::new(password.to_owned());
        world
            .access
            .set_password(&world.db, alice.clone(), password, by())
            .await
    };
    assert!(matches!(set("short").await, Err(AccessError::Password(_))));
    assert!(world.now(&session).await.is_some());
    set("another horse entirely").await.unwrap();
    assert_eq!(world.now(&session).await, None);
    assert_eq!(world.sign_in("alice", PASSWORD).await, None);
    assert!(world.sign_in("alice", "another horse entirely").await.is_some());
}

#[tokio::test]
async fn a_token_may_never_do_more_than_its_owner() {
    let world = World::new().await;
    let alice = world.user("alice", Role::Publisher).await;
    let session = world.sign_in("alice", PASSWORD).await.unwrap();
    let refused = world.token(&session, new_token(Owner::Maker, Some(Role::Admin))).await;
    assert!(matches!(refused, Err(AccessError::RoleTooHigh { .. })));
    let refused = world
        .token(&world.first, new_token(Owner::User(alice.clone()), Some(Role::Admin)))
        .await;
    assert!(matches!(refused, Err(AccessError::RoleTooHigh { .. })));
    let (token, _) = world.token(&session, new_token(Owner::Maker, None)).await.unwrap();
    assert_eq!(token.actor.role, Role::Publisher);
    let lower = UserChange {
        role: Some(Role::Viewer),
        ..UserChange::default()
    };
    world.change(&alice, lower).await.unwrap();
    assert_eq!(world.now(&token).await.unwrap().actor.role, Role::Viewer);
}

#[tokio::test]
async fn a_small_token_can_neither_grow_nor_renew_itself() {
    let world = World::new().await;
    world.user("alice", Role::Admin).await;
    let session = world.sign_in("alice", PASSWORD).await.unwrap();
    let (small, _) = world
        .token(&session, new_token(Owner::Maker, Some(Role::Viewer)))
        .await
        .unwrap();
    let refused = world.token(&small, new_token(Owner::Maker, Some(Role::Operator))).await;
    assert!(matches!(refused, Err(AccessError::RoleTooHigh { .. })));
    let forever = NewToken {
        ttl_ms: None,
        ..new_token(Owner::Maker, None)
    };
    let (second, _) = world.token(&small, forever).await.unwrap();
    assert_eq!(second.ends_at_ms, small.ends_at_ms);
    // A second, larger token of the same person is not its to end.
    let (_, large) = world.token(&session, new_token(Owner::Maker, None)).await.unwrap();
    let ended = revoke_token(&world.db, &small.actor, large.token.id, NOW).await;
    assert!(matches!(ended, Err(AccessError::NoToken(_))));
}

#[tokio::test]
async fn who_is_no_admin_handles_own_tokens_only() {
    let world = World::new().await;
    let bob = world.user("bob", Role::Operator).await;
    world.user("alice", Role::Operator).await;
    let alice = world.sign_in("alice", PASSWORD).await.unwrap();
    let (_, of_bob) = world
        .token(&world.first, new_token(Owner::User(bob.clone()), None))
        .await
        .unwrap();
    let (_, own) = world.token(&alice, new_token(Owner::Maker, None)).await.unwrap();
    let seen = tokens(&world.db, &alice.actor).await.unwrap();
    assert_eq!(seen.iter().map(|token| &token.id).collect::<Vec<_>>(), [&own.token.id]);
    assert_eq!(tokens(&world.db, &world.first.actor).await.unwrap().len(), 3);
    for owner in [Owner::User(bob), Owner::Nobody] {
        let refused = world.token(&alice, new_token(owner, None)).await;
        assert!(matches!(refused, Err(AccessError::NotYours)));
    }
    let refused = revoke_token(&world.db, &alice.actor, of_bob.token.id, NOW).await;
    assert!(matches!(refused, Err(AccessError::NoToken(_))));
    let id = own.token.id.clone();
    revoke_token(&world.db, &alice.actor, id, NOW).await.unwrap();
    assert_eq!(token_grant(&world.db, &own.text, NOW).await.unwrap(), None);
}

#[tokio::test]
async fn there_is_always_a_way_in_for_an_admin() {
    let world = World::new().await;
    let Credential::Token(first) = world.first.credential.clone() else {
        panic!("the first grant is a token's");
    };
    let revoke = async || revoke_token(&world.db, &world.first.actor, first.clone(), NOW).await;
    assert!(matches!(revoke().await, Err(AccessError::LastAdmin)));
    let alice = world.user("alice", Role::Admin).await;
    revoke().await.unwrap();
    assert!(matches!(
        world.change(&alice, SHUT_OUT).await,
        Err(AccessError::LastAdmin)
    ));
    let lower = UserChange {
        role: Some(Role::Publisher),
        ..UserChange::default()
    };
    assert!(matches!(world.change(&alice, lower).await, Err(AccessError::LastAdmin)));
    assert!(
        world.sign_in("alice", PASSWORD).await.is_some(),
        "a refused change is undone"
    );
    world.user("bob", Role::Admin).await;
    world.change(&alice, SHUT_OUT).await.unwrap();
}

#[tokio::test]
async fn one_person_stays_one_whatever_it_signs_in_with() {
    let world = World::new().await;
    world.user("alice", Role::Admin).await;
    let session = world.sign_in("alice", PASSWORD).await.unwrap();
    let (own, _) = world.token(&session, new_token(Owner::Maker, None)).await.unwrap();
    let (alone, _) = world.token(&own, new_token(Owner::Nobody, None)).await.unwrap();
    let (again, _) = world.token(&alone, new_token(Owner::Nobody, None)).await.unwrap();
    for grant in [&session, &own, &alone, &again] {
        assert_eq!(grant.actor.person, "alice");
        assert_eq!(person_of(&grant.actor.name), "alice", "{}", grant.actor.name);
    }
    assert_eq!(again.actor.name, "alice:ci");
    assert_eq!(person_of(&world.first.actor.name), world.first.actor.person);
    assert_eq!(alone.actor.user, None);
    assert_ne!(world.first.actor.person, "alice");
}

#[tokio::test]
async fn a_name_is_taken_once() {
    let world = World::new().await;
    world.user("alice", Role::Viewer).await;
    let who = ("alice".parse().unwrap(), Role::Admin);
    let second = world.access.create_user(&world.db, who, None, by()).await;
    assert!(matches!(second, Err(AccessError::Exists(_))));
}

#[tokio::test]
async fn who_let_whom_in_stands_in_the_audit_log() {
    let world = World::new().await;
    let alice = world.user("alice", Role::Viewer).await;
    world.change(&alice, SHUT_OUT).await.unwrap();
    let (_, made) = world.token(&world.first, new_token(Owner::Nobody, None)).await.unwrap();
    let id = made.token.id.clone();
    revoke_token(&world.db, &world.first.actor, id, NOW).await.unwrap();
    let filter = audit::Filter {
        limit: 10,
        ..audit::Filter::default()
    };
    let entries = audit::list(&world.db, filter).await.unwrap();
    let said: Vec<_> = entries
        .iter()
        .rev()
        .map(|e| (e.actor.as_str(), e.action.as_str()))
        .collect();
    assert_eq!(
        said,
        [
            ("control plane", "token.create"),
            ("ada", "user.create"),
            ("ada", "user.change"),
            ("token:first", "token.create"),
            ("token:first", "token.revoke"),
        ]
    );
    let secret = made.text.split('_').nth(2).unwrap();
    assert!(!format!("{entries:?}").contains(secret));
}
