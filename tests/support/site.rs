//! An application, its event bus and a provider, and voice-sync told of all three.

use voice_sync_simulator::Simulator;

use super::app::{App, Variant};
use super::binary::VoiceSync;
use super::bus::Bus;
use super::fates::simulator;

pub(crate) const ALL: [Variant; 6] = [
    Variant::A,
    Variant::B,
    Variant::D,
    Variant::Pooled,
    Variant::E32,
    Variant::E36,
];

/// An application with its event bus, and a provider.
pub(crate) struct Site {
    pub(crate) app: App,
    pub(crate) bus: Bus,
    pub(crate) provider: Simulator,
}

impl Site {
    /// With its own tables made.
    pub(crate) async fn new(variant: Variant) -> Self {
        Self::on(App::new(variant).await).await
    }

    pub(crate) async fn on(app: App) -> Self {
        let site = Self {
            app,
            bus: Bus::new().await,
            provider: simulator().await,
        };
        let migrated = VoiceSync::new(&["migrate"]).env("DATABASE_URL", &site.app.url);
        migrated.run().await.expect_code(0);
        site
    }

    pub(crate) fn doctor(&self) -> VoiceSync {
        self.same(VoiceSync::new(&["doctor"]))
    }

    pub(crate) fn sync_once(&self) -> VoiceSync {
        self.same(VoiceSync::new(&["sync-once"]))
    }

    /// Another command, told the same.
    pub(crate) fn run(&self, command: &[&str]) -> VoiceSync {
        self.same(VoiceSync::new(command))
    }

    fn same(&self, command: VoiceSync) -> VoiceSync {
        command
            .publishing_to(&self.bus)
            .env("DATABASE_URL", &self.app.url)
            .env("ELEVENLABS_BASE_URL", self.provider.url())
    }
}
