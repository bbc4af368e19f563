// A small honest pharmacy: from the code that a patient shows to the goods in his hands. It works only on what it
// downloaded, whose signatures it checked and whose state it understands.
import { DownloadInvalid, checkedDocument } from "./download.js";
import { Rejected } from "./hub.js";
import { Product } from "./product.js";
import { enumName, hasUnknownEnum, method } from "./schema.js";
import { SigningKey, sha256 } from "./signing.js";

const DOWNLOAD = "02122";
const PURCHASE = "02121";
const PICK_UP = "01302";
const DOUBTED_MAX = 3;
const DECISIONS = { pass: "PASS", reject: "REJECT", return: "RETURN_TO_DOCTOR" };
const NOT_UNDERSTOOD = "its state is not one that this product knows";

const shown = ({ rx, use, undo_requested: undoRequested }) => ({
  status: enumName("RxStatus", rx),
  use: enumName("RxUseStatus", use),
  undo_requested: undoRequested,
});

/** A decimal number as an integer of 10^-places. */
function scaled(text, places) {
  const [whole, part = ""] = String(text).split(".");
  return BigInt(whole + part.padEnd(places, "0").slice(0, places));
}

/** What the patient pays who pays everything himself: each line rounded half up to the fen. */
function selfPaid(lines) {
  const fen = lines.reduce((sum, line) => sum + (scaled(line.quantity, 4) * scaled(line.unit_price, 6) + 50_000_000n) / 100_000_000n, 0n);
  return Object.fromEntries(["total_fen", "own_pay_fen", "person_fen", "cash_fen"].map((name) => [name, String(fen)]));
}

function understood(name, reply) {
  if (hasUnknownEnum(method(name).responseType, reply)) throw new Rejected("STATUS_UNKNOWN", { reason: NOT_UNDERSTOOD });
  return reply;
}

export class Pharmacy extends Product {
  repairs = new Set(["reverse"]);
  news = "Dispensing/WatchOrders";

  constructor(configuration, clock) {
    super(configuration, clock);
    const keys = Object.entries(configuration.signing_keys).map(([code, key]) => [code, new SigningKey(key.suite, key.pem_path)]);
    this.keys = new Map(keys);
    this.staff = configuration.staff;
    this.code = configuration.institution_code;
    this.trusted = configuration.trusted_signers ?? [];
    this.performers = {
      list_available: (act, args) => this.#list(act, args),
      download: (act, args) => this.#download(act, args),
      release: (act, args) => this.#release(act, args),
      review: (act, args) => this.#review(act, args),
      settle: (act, args) => this.#settle(act, args),
      dispense: (act, args) => this.#dispense(act, args),
      hand_over: (act, args) => this.#handOver(act, args),
      undo: (act, args) => this.#undo(act, args),
      reverse: (act, args) => this.#reverse(act, args),
      start_delivery: (act, args) => this.#startDelivery(act, args),
      delivery_step: (act, args) => this.#deliveryStep(act, args),
      sign_delivery: (act, args) => this.#signDelivery(act, args),
    };
  }

  /** What a message of the watch tells of a prescription. */
  told(news) {
    return { ...shown(news.statuses), order: enumName("OrderStatus", news.order), hold_until_ms: Number(news.hold_until_ms) };
  }

  #signed(type, content, signer = this.code) {
    return this.keys.get(signer).sign(type, { ...content, pharmacy_code: this.code, signed_at_ms: this.clock.nowMs() });
  }

  async #shown(act, voucherCode, businessType) {
    const build = () => ({ voucher_code: voucherCode, business_type: businessType });
    return (await act.step("verify", "Voucher/VerifyVoucher", build)).voucher_ref;
  }

  // ---- taking a prescription ----

  async #list(act, { voucher_code: voucherCode, rx_qr: rxQr }) {
    const offered = new Map();
    const offer = (one, proof) => {
      offered.set(one.rx_no, one);
      const unclear = typeof one.statuses?.rx === "number" || typeof one.statuses?.use === "number";
      this.journal.put(`offer/${one.rx_no}`, unclear ? { not_understood: true } : proof);
    };
    if (rxQr) {
      const found = await act.step("resolve", "Dispensing/ResolveQr", () => ({ rx_qr: rxQr }));
      offer(found.prescription, { rx_token: found.rx_token });
    } else {
      const reference = await this.#shown(act, voucherCode, DOWNLOAD);
      for (let page = 1, token = ""; page === 1 || token; page += 1) {
        const at = token;
        const build = () => ({ voucher_ref: reference, page: { page_token: at } });
        const listed = await act.step(`list-${page}`, "Dispensing/ListByVoucher", build);
        for (const one of listed.prescriptions) offer(one, { authorization_no: one.authorization_no });
        token = listed.next_page_token;
      }
    }
    const prescriptions = [...offered.values()].map((one) => ({
      rx_no: one.rx_no,
      hospital_code: one.hospital_code,
      hospital_name: one.hospital_name,
      valid_until_ms: Number(one.valid_until_ms),
      line_count: one.line_count,
      ...shown(one.statuses),
    }));
    return { prescriptions };
  }

  async #download(act, { rx_no: rxNo }) {
    const proof = this.journal.get(`offer/${rxNo}`);
    if (!proof) throw new Rejected("NOT_OFFERED", { reason: "the patient has not shown this prescription here" });
    if (proof.not_understood) throw new Rejected("STATUS_UNKNOWN", { reason: NOT_UNDERSTOOD });
    let reply = await act.step("download", "Dispensing/DownloadPrescription", () => proof);
    const order = { act: act.name, hold_until_ms: Number(reply.hold_until_ms) };
    let document;
    for (let attempt = 1; !document; attempt += 1) {
      try {
        const checked = checkedDocument(reply, rxNo, this.trusted);
        understood("Dispensing/DownloadPrescription", reply);
        document = checked;
      } catch (error) {
        if (!(error instanceof DownloadInvalid || error instanceof Rejected)) throw error;
        if (attempt === DOUBTED_MAX) {
          // Set aside: it will not be worked on.
          const code = error.code ?? "DOWNLOAD_INVALID";
          this.journal.put(`order/${rxNo}`, { ...order, set_aside: code });
          throw new Rejected(code, { reason: error.message });
        }
        // Perhaps only its way has spoilt it.
        reply = await act.step("download", "Dispensing/DownloadPrescription", null, { again: true });
      }
    }
    const left = new Map(reply.remaining.map((one) => [one.line_no, one.quantity]));
    order.lines = document.prescription.lines.map((line) => ({
      line_no: line.line_no,
      drug_code: line.drug_code,
      quantity: left.get(line.line_no) ?? line.quantity,
      unit_price: line.unit_price || "10.00",
    }));
    order.prescription_sha256 = sha256(reply.prescription.payload).toString("hex");
    this.journal.put(`order/${rxNo}`, order);
    const { hold_until_ms: holdUntilMs, lines } = order;
    return { hold_until_ms: holdUntilMs, lines, person_no: document.prescription.person_no, ...shown(reply.statuses) };
  }

  /** What is kept of a prescription that may be worked on. */
  #order(rxNo) {
    const order = this.journal.get(`order/${rxNo}`);
    if (!order) throw new Rejected("NOT_DOWNLOADED", { reason: "this pharmacy does not hold the prescription" });
    if (order.set_aside) throw new Rejected(order.set_aside, { reason: "it was set aside before" });
    const known = Object.values(this.known()[rxNo] ?? {});
    if (known.some((value) => String(value).startsWith("UNKNOWN_"))) throw new Rejected("STATUS_UNKNOWN", { reason: NOT_UNDERSTOOD });
    return order;
  }

  #keep(rxNo, changes) {
    this.journal.put(`order/${rxNo}`, { ...this.journal.get(`order/${rxNo}`), ...changes });
  }

  /** The reply; a prescription in a state that nobody has published is set aside, and will not be worked on. */
  #understood(rxNo, name, reply) {
    try {
      return understood(name, reply);
    } catch (notUnderstood) {
      this.#keep(rxNo, { set_aside: "STATUS_UNKNOWN" });
      throw notUnderstood;
    }
  }

  async #release(act, { rx_no: rxNo, reason }) {
    const build = () => ({ rx_no: rxNo, reason: reason || "顾客放弃" });
    const released = await act.step("release", "Dispensing/ReleaseOrder", build);
    this.journal.put(`order/${rxNo}`, null);
    return shown(released.statuses);
  }

  async #review(act, { rx_no: rxNo, decision, opinion }) {
    const order = this.#order(rxNo);
    const { pharmacist } = this.staff;
    const statement = () => ({
      rx_no: rxNo,
      pharmacist_code: pharmacist,
      decision: `REVIEW_DECISION_${DECISIONS[decision ?? "pass"]}`,
      opinion: opinion || "用药合理",
      prescription_sha256: Buffer.from(order.prescription_sha256, "hex"),
    });
    const build = () => ({ statement: this.#signed("ReviewStatement", statement(), pharmacist) });
    const reviewed = this.#understood(rxNo, "Dispensing/ReviewPrescription", await act.step("review", "Dispensing/ReviewPrescription", build));
    const review = enumName("ReviewStatus", reviewed.review);
    if (review === "PASSED") this.#keep(rxNo, { reviewer: pharmacist });
    else this.journal.put(`order/${rxNo}`, null);
    return { review, ...shown(reviewed.statuses) };
  }

  // ---- money ----

  async #settle(act, args) {
    const { rx_no: rxNo, pay = "insured" } = args;
    const sold = this.#sold(this.#order(rxNo).lines, args.lines);
    let build;
    if (pay === "self") {
      const statement = () => ({ rx_no: rxNo, pay_mode: "PAY_MODE_SELF", amounts: selfPaid(sold), lines: sold });
      build = () => ({ statement: this.#signed("SettleStatement", statement()) });
    } else {
      const reference = await this.#shown(act, args.voucher_code, PURCHASE);
      const asked = () => ({ rx_no: rxNo, voucher_ref: reference, lines: sold, use_account: args.use_account ?? true });
      const quote = await act.step("quote", "Dispensing/QuoteSettlement", asked);
      const statement = () => ({ rx_no: rxNo, quote_id: quote.quote_id, pay_mode: "PAY_MODE_INSURED", amounts: quote.amounts });
      build = () => ({ statement: this.#signed("SettleStatement", statement()), voucher_ref: reference });
    }
    const settled = await act.step("settle", "Dispensing/Settle", build);
    this.#keep(rxNo, { settlement_id: settled.settlement_id, sold });
    const amounts = Object.fromEntries(Object.entries(settled.amounts).map(([name, fen]) => [name, Number(fen)]));
    return { settlement_id: settled.settlement_id, amounts };
  }

  /** All that is left, or the wanted lines with what they change. */
  #sold(lines, wanted) {
    if (!wanted) return lines.filter((line) => scaled(line.quantity, 4) > 0n);
    const byNumber = new Map(lines.map((line) => [line.line_no, line]));
    return wanted.map(({ line_no: number, ...changed }) => {
      const texts = Object.entries(changed).map(([name, value]) => [name, String(value)]);
      return { ...byNumber.get(number), ...Object.fromEntries(texts) };
    });
  }

  #settlement(rxNo) {
    const { settlement_id: settlementId } = this.#order(rxNo);
    if (!settlementId) throw new Rejected("SETL_REQUIRED", { reason: "nothing was settled here" });
    return settlementId;
  }

  async #undo(act, { rx_no: rxNo, reason }) {
    const settlementId = this.#settlement(rxNo);
    const build = () => ({ rx_no: rxNo, settlement_id: settlementId, reason: reason || "无法配药" });
    const undone = await act.step("undo", "Dispensing/UndoSettlement", build);
    this.journal.put(`order/${rxNo}`, null);
    return { settlement_id: settlementId, ...shown(undone.statuses) };
  }

  /** Takes back the last settlement that was asked for, whether it was done or not. */
  async #reverse(act, { rx_no: rxNo }) {
    const asked = this.acts().reverse().find((one) => one.record.verb === "settle" && one.record.rx_no === rxNo && one.requestId("settle"));
    if (!asked) throw new Rejected("NOTHING_TO_REVERSE", { reason: "no settlement was asked for here" });
    const build = () => ({ original_request_id: asked.requestId("settle"), original_transaction: "2102" });
    const reversed = await act.step("reverse", "Dispensing/ReverseSettlement", build);
    asked.close("reversed");
    const target = enumName("ReversalTarget", reversed.target);
    if (target === "SETTLEMENT") this.journal.put(`order/${rxNo}`, null);
    return { target, settlement_id: reversed.settlement_id };
  }

  // ---- goods ----

  async #dispense(act, { rx_no: rxNo, lots }) {
    const settlementId = this.#settlement(rxNo);
    const { reviewer = "", sold } = this.#order(rxNo);
    const statement = () => ({
      rx_no: rxNo,
      settlement_id: settlementId,
      reviewer_code: reviewer,
      dispenser_code: this.staff.dispenser,
      checker_code: this.staff.checker,
      lots: this.#lots(sold, lots ?? sold.map(() => ({}))),
    });
    const build = () => ({ statement: this.#signed("DispenseStatement", statement()) });
    const dispensed = this.#understood(rxNo, "Dispensing/Dispense", await act.step("dispense", "Dispensing/Dispense", build));
    this.#keep(rxNo, { out: true });
    return { sale_no: dispensed.sale_no, ...shown(dispensed.statuses) };
  }

  /** One lot for each wanted one, filled up from the sold line that it names, or that stands in its place. */
  #lots(sold, wanted) {
    return wanted.map((lot, place) => {
      const number = lot.line_no ?? sold[Math.min(place, sold.length - 1)].line_no;
      const line = sold.find((one) => one.line_no === number) ?? sold[0];
      const quantity = String(lot.quantity ?? line.quantity);
      const packs = Number((scaled(quantity, 4) + 9_999n) / 10_000n);
      return {
        drug_code: line.drug_code,
        lot_no: "L20260901",
        expires_on: "2030-08-31",
        trace_codes: lot.trace_codes ?? Array.from({ length: packs }, () => this.#pack()),
        ...lot,
        line_no: number,
        quantity,
      };
    });
  }

  /** The trace code of the next pack on the shelf: 20 digits, this pharmacy's and never twice. */
  #pack() {
    const number = (this.journal.get("given/packs") ?? 0) + 1;
    this.journal.put("given/packs", number);
    return `8${this.code.slice(1, 12).padStart(11, "0")}${String(number).padStart(8, "0")}`;
  }

  async #handOver(act, { rx_no: rxNo, voucher_code: voucherCode }) {
    this.#order(rxNo);
    const reference = await this.#shown(act, voucherCode, PICK_UP);
    const statement = () => ({ rx_no: rxNo, staff_code: this.staff.dispenser });
    const build = () => ({ statement: this.#signed("HandOverStatement", statement()), voucher_ref: reference });
    await act.step("hand_over", "Dispensing/HandOver", build);
    return {};
  }

  async #startDelivery(act, { rx_no: rxNo }) {
    this.#order(rxNo);
    const courier = { company: "示例配送", courier_code: this.staff.courier, distance_m: 3_000 };
    const build = () => ({ rx_no: rxNo, ...courier, picked_up_at_ms: this.clock.nowMs() });
    const started = await act.step("start_delivery", "Dispensing/StartDelivery", build);
    this.#keep(rxNo, { delivery_no: started.delivery_no });
    return { delivery_no: started.delivery_no, delivery: enumName("DeliveryStatus", started.status) };
  }

  async #deliveryStep(act, { rx_no: rxNo, step }) {
    const { delivery_no: deliveryNo } = this.#order(rxNo);
    const report = { delivery_no: deliveryNo, step: `DELIVERY_STEP_${step.toUpperCase()}`, courier_code: this.staff.courier };
    const build = () => ({ rx_no: rxNo, ...report, at_ms: this.clock.nowMs() });
    const moved = await act.step("update_delivery", "Dispensing/UpdateDelivery", build);
    return { delivery: enumName("DeliveryStatus", moved.status) };
  }

  async #signDelivery(act, { rx_no: rxNo, sign_code: signCode }) {
    const { delivery_no: deliveryNo } = this.#order(rxNo);
    const statement = () => ({ rx_no: rxNo, delivery_no: deliveryNo });
    const build = () => ({ statement: this.#signed("SignDeliveryStatement", statement()), sign_code: signCode });
    const signed = await act.step("sign_delivery", "Dispensing/SignDelivery", build);
    return { delivery: enumName("DeliveryStatus", signed.status) };
  }
}
